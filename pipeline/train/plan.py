"""What a run will do, settled before anything is written: data, steps, size.

planned = make(params, tokens, tokenizer)           # a UserError where data, tokenizer and params do not fit

What it needs of memory is in memory.py, what the machine can compute in hardware.py.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline import console
from pipeline.errors import UserError
from pipeline.model import size
from pipeline.model.layout import moe_layers
from pipeline.params import Model, Params
from pipeline.tokens import tokenizer as vocabulary
from pipeline.train.memory import Weights
from pipeline.train.samples import Samples

if TYPE_CHECKING:
    from pipeline.model.build import MoEGPT

_DOCUMENTS = 8  # in a step; with fewer, neighbours in one text make up a step, and it teaches less (docs/recipe.md)
_SHORTEST = 128  # samples that are advised, tokens
_MANY_EPOCHS = 4  # beyond, repeated tokens are worth visibly less (Muennighoff et al. 2023, arXiv 2305.16264)


class Adapter(Protocol):
    """What is trained beside frozen weights."""

    identity: dict[str, Any]  # every setting that decides what is learned, as plain values

    def put_in(self, gpt: "MoEGPT", seed: int) -> None:
        """Freeze the model's weights and add what trains; also on the meta device."""

    def save(self, gpt: "MoEGPT", into: Path, tokenizer: Path) -> None:
        """Write the trained model as a litgpt checkpoint folder."""


@dataclass(frozen=True)
class Plan:
    vocab_size: int  # of the tokenizer; the model's may be larger
    eos_id: int
    count: size.Count
    weights: Weights
    samples: Samples
    val: Samples
    total_steps: int
    bound: str  # the parameter that ends the run
    tokens_per_step: int
    flops_per_token: float
    adapter: Adapter | None = None

    @property
    def epochs(self) -> float:
        """Passes over the training tokens in the whole run."""
        return self.total_steps * self.tokens_per_step / (self.samples.count * self.samples.block_size)


def make(params: Params, tokens: Path, tokenizer: Path, adapter: Adapter | None = None) -> Plan:
    """Raises UserError for too few tokens, a vocabulary that does not fit, or data that is not there."""
    train = params.train
    vocab_size = vocabulary.vocab_size(tokenizer)
    samples = Samples(tokens / "train", train.block_size, train.seed, vocab_size)
    val = Samples(tokens / "val", train.block_size, None, vocab_size)
    for name, store in (("train", samples), ("val", val)):
        if not store.count:
            raise UserError(
                f"{tokens / name} holds less than one sample of train.block_size = {train.block_size} tokens; "
                f"lower it, {'raise clean.val_fraction, ' if name == 'val' else ''}or download more text"
            )
    count = size.count(params.model, vocab_size)  # refuses a vocabulary that is too small
    tokens_per_step = train.global_batch_size * train.block_size
    steps = {
        "max_tokens": math.ceil(train.max_tokens / tokens_per_step) if train.max_tokens else None,
        "max_steps": train.max_steps,
        "max_epochs": math.ceil(train.max_epochs * samples.count / train.global_batch_size)
        if train.max_epochs
        else None,
    }
    total_steps, bound = min((n, name) for name, n in steps.items() if n is not None)
    plan = Plan(
        vocab_size=vocab_size,
        eos_id=vocabulary.eos_id(tokenizer),
        count=count,
        weights=weights(params.model, vocab_size, adapter),
        samples=samples,
        val=val,
        total_steps=total_steps,
        bound=bound,
        tokens_per_step=tokens_per_step,
        flops_per_token=count.flops_per_token(train.block_size),
        adapter=adapter,
    )
    if train.schedule.warmup > plan.total_steps:
        raise UserError(
            f"train.schedule.warmup = {train.schedule.warmup:g} steps, but the run has {plan.total_steps}; "
            "take less, or a share of the run below 1"
        )
    return plan


def remarks(plan: Plan, params: Params) -> None:
    """Warn of what can be done but is likely not meant."""
    if plan.epochs > _MANY_EPOCHS:
        console.warn(
            f"the run sees the {plan.samples.count * plan.samples.block_size:,} training tokens {plan.epochs:.1f} "
            f"times; beyond {_MANY_EPOCHS} repeats teach little: more text, or a lower train.max_tokens"
        )
    train, length = params.train, plan.samples.tokens_per_document
    times = _DOCUMENTS // train.global_batch_size
    if length and length > train.block_size and times > 1 and train.block_size // times >= _SHORTEST:
        shorter, context = train.block_size // times, ""
        changes = {"train.block_size": shorter}
        if params.model.block_size == train.block_size:
            changes, context = {"model.block_size": shorter}, f" (the model then reads {shorter} tokens at most)"
        changes["train.global_batch_size"] = train.global_batch_size * times
        if train.micro_batch_size != "auto":
            changes["train.micro_batch_size"] = train.micro_batch * times
        settings = " ".join(f"-S {name}={value}" for name, value in changes.items())
        console.warn(
            f"documents have {length:,.0f} tokens on average, so the {plan.tokens_per_step:,} of a step come from "
            f"{train.global_batch_size} of them; as many tokens in shorter samples of more documents teach more: "
            f"{settings}{context}"
        )
    if moe_layers(params.model) and not params.train.balance_coef and params.model.router == "softmax":
        console.warn("train.balance_coef = 0: nothing keeps the experts' load even")


def weights(model: Model, vocab_size: int, adapter: Adapter | None) -> Weights:
    """With an adapter counted on the meta device."""
    if adapter is None:
        return Weights(size.count(model, vocab_size).stored)
    from torch.nn.utils import parametrize

    from pipeline.model import build

    gpt = build.on_meta(model, vocab_size)
    adapter.put_in(gpt, 0)
    summed = [module.parametrizations for module in gpt.modules() if parametrize.is_parametrized(module)]
    return Weights(
        trained=sum(p.numel() for p in gpt.parameters() if p.requires_grad),
        frozen=sum(p.numel() for p in gpt.parameters() if not p.requires_grad),
        summed=sum(weight.original.numel() for module in summed for weight in module.values()),
    )
