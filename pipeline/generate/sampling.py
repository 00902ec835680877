"""How the next token is chosen: the settings, what they do to the logits, and the draw.

    logits_BV = shaped(logits_BV, seen_BV, sampling); token_B = draw(logits_BV, sampling, uniform_B)

The order is that of transformers, whose logits processors do all but the penalty (ours takes rows of any length), so
that settings mean the same in both.

Legend: B rows (prompts), V vocabulary.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pipeline.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Settings of one generation; a value outside its range raises UserError."""

    max_new_tokens: int = 128  # at most; the context may end it sooner
    temperature: float = 0.8  # 0: greedy, the likeliest token each time
    top_k: int | None = None  # choose among the k likeliest (and those as likely as the k-th)
    top_p: float = 1.0  # among the fewest that hold this share of the probability (Holtzman et al. 2019)
    min_p: float = 0.0  # among those at least this times as likely as the likeliest (arXiv 2407.01082)
    repetition_penalty: float = 1.0  # divides the logits of tokens already there, prompt included (arXiv 1909.05858)
    seed: int = 0
    stop: tuple[str, ...] = ()  # the text ends before the first of these

    def __post_init__(self) -> None:
        for name, allowed, right in (
            ("max_new_tokens", "1 or more", self.max_new_tokens >= 1),
            ("temperature", "0 (greedy) or more", 0 <= self.temperature < math.inf),
            ("top_k", "1 or more", self.top_k is None or self.top_k >= 1),
            ("top_p", "more than 0, at most 1", 0 < self.top_p <= 1),
            ("min_p", "0 to 1", 0 <= self.min_p <= 1),
            ("repetition_penalty", "more than 0 (1: none)", 0 < self.repetition_penalty < math.inf),
            ("stop", "texts of a character or more, in UTF-8", all(text and is_text(text) for text in self.stop)),
        ):
            if not right:
                raise UserError(f"{name} = {getattr(self, name)!r}; allowed: {allowed}")


def is_text(text: str) -> bool:
    """Whether UTF-8 can write it; bytes of another encoding on a command line arrive as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def uniforms(sampling: Sampling, prompt: str, count: int) -> Tensor:
    """Random numbers in (0, 1], float64 [count], that depend on the seed and the prompt alone, not its neighbours."""
    digest = hashlib.sha256(f"{sampling.seed}/{prompt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return 1 - torch.rand(count, dtype=torch.float64, generator=generator)


def shaped(logits_BV: Tensor, seen_BV: Tensor | None, sampling: Sampling) -> Tensor:
    """Penalty, temperature, top-k, top-p, min-p, in this order; what is ruled out becomes -inf.

    `seen_BV` (bool) marks the tokens of each row so far; None where there is no penalty.
    """
    if seen_BV is not None:
        penalty = sampling.repetition_penalty
        punished_BV = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
        logits_BV = torch.where(seen_BV, punished_BV, logits_BV)
    if sampling.temperature == 0:
        return logits_BV
    logits_BV = logits_BV / sampling.temperature
    warpers: list[Any] = [
        *([TopKLogitsWarper(sampling.top_k)] if sampling.top_k is not None else []),
        *([TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []),
        *([MinPLogitsWarper(sampling.min_p)] if sampling.min_p > 0 else []),
    ]
    for warper in warpers:
        logits_BV = warper(None, logits_BV)
    return logits_BV


def exact(device: torch.device) -> torch.device:
    """Where the draw's float64 is computed: on the device itself, but MPS has none."""
    return torch.device("cpu") if device.type == "mps" else device


def draw(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor) -> Tensor:
    """The next token of each row: the likeliest if greedy, else where the cumulated probability reaches `uniform_B`.

    With a uniform number in (0, 1] (on `exact(device)`) that is never a token of probability 0.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    cumulated_BV = logits_BV.to(exact(logits_BV.device)).double().softmax(-1).cumsum(-1)
    token_B = torch.searchsorted(cumulated_BV, uniform_B[:, None] * cumulated_BV[:, -1:])[:, 0]
    return token_B.to(logits_BV.device)
