"""A text as the model sees it: how likely each token was, what else could have come, which experts each token visited.

    inspected = inspect(generator, generator.encode("Once upon a time"))
    inspected.tokens[3].probability; inspected.tokens[3].experts[layer]       # [(expert, weight), …]
    inspected.load()                                                          # share of each expert, layer by layer

Legend: T tokens, V vocabulary, K experts of a token.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.generate.generation import Generator
from pipeline.generate.spelling import Spelling
from pipeline.model.layout import moe_layers
from pipeline.model.routing import Router


@dataclass(frozen=True)
class Token:
    text: str  # what it adds; "" for one that only begins a character, the whole character for the last of it
    probability: float | None  # given the tokens before it; None for the first
    alternatives: list[tuple[str, float]]  # the likeliest tokens in its place with their probabilities
    experts: list[list[tuple[int, float]]]  # in each MoE layer: the experts visited and the weights of their outputs


@dataclass(frozen=True)
class Inspected:
    tokens: list[Token]
    layers: list[int]  # which of the model's layers (from 0) hold experts
    n_expert: int

    def load(self) -> list[list[float]]:
        """The share of the text's token–expert assignments that each expert has, layer by layer."""
        counts = [Counter(e for token in self.tokens for e, _ in token.experts[n]) for n in range(len(self.layers))]
        return [[count[e] / count.total() for e in range(self.n_expert)] for count in counts]

    def described(self) -> dict[str, Any]:
        """All of it as JSON takes it, rounded to what a person reads."""
        return {
            "layers": self.layers,
            "n_expert": self.n_expert,
            "load": [[round(share, 4) for share in shares] for shares in self.load()],
            "tokens": [
                {
                    "text": token.text,
                    "probability": None if token.probability is None else float(f"{token.probability:.4g}"),
                    "alternatives": [
                        {"text": text, "probability": float(f"{p:.4g}")} for text, p in token.alternatives
                    ],
                    "experts": [
                        [{"expert": expert, "weight": round(weight, 4)} for expert, weight in layer]
                        for layer in token.experts
                    ],
                }
                for token in self.tokens
            ],
        }


@torch.inference_mode()
def inspect(generator: Generator, ids: list[int], n_alternatives: int = 5) -> Inspected:
    """Read a text once. Raises UserError for one that is empty or longer than the model's context."""
    model = generator.model
    if not ids:
        raise UserError("the text is empty; a word is enough")
    if len(ids) > generator.context:
        raise UserError(f"the text has {len(ids):,} tokens; the model's context is {generator.context:,}: give less")
    device = model.lm_head.weight.device
    routed: list[tuple[Tensor, Tensor]] = []  # weights and experts [T, K] of each MoE layer
    routers = [module for module in model.modules() if isinstance(module, Router)]
    hooks = [router.register_forward_hook(lambda _m, _in, out: routed.append(out[:2])) for router in routers]
    try:
        logits_TV = model(torch.tensor([ids], device=device))[0, :, : generator.n_vocab].float()
    finally:
        for hook in hooks:
            hook.remove()
    probability_TV = logits_TV.softmax(-1)
    likeliest_TA, likeliest_ids_TA = probability_TV.topk(min(n_alternatives, generator.n_vocab))
    next_T = torch.tensor(ids[1:], device=device)
    probabilities = [None, *probability_TV[:-1].gather(1, next_T[:, None])[:, 0].tolist()]
    alternatives: list[list[tuple[str, float]]] = [
        [],
        *(
            [(generator.name(token), value) for token, value in zip(tokens, values, strict=True)]
            for tokens, values in zip(likeliest_ids_TA[:-1].tolist(), likeliest_TA[:-1].tolist(), strict=True)
        ),
    ]
    by_layer = [(index_TK.tolist(), weight_TK.tolist()) for weight_TK, index_TK in routed]
    experts = [
        [list(zip(index_TK[t], weight_TK[t], strict=True)) for index_TK, weight_TK in by_layer] for t in range(len(ids))
    ]
    texts = _texts(generator, ids)
    tokens = [Token(*parts) for parts in zip(texts, probabilities, alternatives, experts, strict=True)]
    return Inspected(tokens, moe_layers(model.params), model.config.n_expert)


def _texts(generator: Generator, ids: list[int]) -> list[str]:
    special = {i for i, token in generator.tokenizer.get_added_tokens_decoder().items() if token.special}
    spelling = Spelling(generator.tokenizer, [])
    texts = [generator.name(token) if token in special else spelling.add(token) for token in ids]
    return [*texts[:-1], texts[-1] + spelling.rest()]
