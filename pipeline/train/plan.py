"""What a run will do, settled before anything is written: vocabulary, steps, size, and what cannot be.

plan = make(params, tokens, tokenizer)       # a UserError where data, tokenizer and params do not fit
"""

import math
from dataclasses import dataclass
from pathlib import Path

from pipeline import console
from pipeline.errors import UserError
from pipeline.model import build
from pipeline.model.layout import moe_layers
from pipeline.params import Params
from pipeline.tokens import tokenizer as vocabulary
from pipeline.train.data import Samples

_MANY_EPOCHS = 4  # beyond, repeated tokens are worth visibly less (Muennighoff et al. 2023, arXiv 2305.16264)


@dataclass(frozen=True)
class Plan:
    vocab_size: int  # of the tokenizer; the model's may be larger
    eos_id: int
    count: build.Count
    samples: Samples
    val: Samples
    total_steps: int
    bound: str  # the parameter that ends the run
    tokens_per_step: int
    flops_per_token: float

    @property
    def epochs(self) -> float:
        """Passes over the training tokens in the whole run."""
        return self.total_steps * self.tokens_per_step / (self.samples.count * self.samples.block_size)


def make(params: Params, tokens: Path, tokenizer: Path) -> Plan:
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
    count = build.count(params.model, vocab_size)  # refuses a vocabulary that is too small
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
        samples=samples,
        val=val,
        total_steps=total_steps,
        bound=bound,
        tokens_per_step=tokens_per_step,
        flops_per_token=count.flops_per_token(train.block_size),
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
    if moe_layers(params.model) and not params.train.balance_coef and params.model.router == "softmax":
        console.warn("train.balance_coef = 0: nothing keeps the experts' load even")
