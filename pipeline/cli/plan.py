"""`moe plan`: what a training run would take, counted before anything is trained.

for line in forecast(params, tokens, tokenizer, peak): print(line)
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline import console
from pipeline.model import build
from pipeline.params import Params
from pipeline.tokens import tokenizer as vocabulary
from pipeline.train import hardware, launch, memory, plan

_SHARES_OF_PEAK = (0.2, 0.5)  # what runs reach: small models and old cards the one, large ones on new cards the other


def forecast(params: Params, tokens: Path, tokenizer: Path) -> Iterator[str]:
    """Lines on parameters, memory on one device, tokens and time. Measures this machine's peak for the last.

    Without a token set (nothing was tokenized yet) what depends on it is left out and said so. Raises UserError where
    params and data do not fit.
    """
    train, model = params.train, params.model
    tokenized = (tokenizer / "tokenizer.json").is_file()
    vocab_size = vocabulary.vocab_size(tokenizer) if tokenized else model.vocab_size or params.tokenizer.vocab_size
    if vocab_size is None:
        yield "vocabulary: unknown until `dvc repro tokenize` has run, or model.vocab_size is set"
        return
    count = build.count(model, vocab_size)
    origin = "" if tokenized else " (from the parameters; nothing is tokenized yet)"
    yield f"vocabulary: {vocab_size:,} tokens{origin}"
    yield f"parameters: {count.total:,} in all, {count.active:,} active for a token"
    rows = build.config(model, vocab_size).padded_vocab_size
    need = memory.count(build.resolved(model, vocab_size), train, count.total, rows)
    yield f"memory on each device: about {console.size(need.total)} ({need})"
    per_token = count.flops_per_token(train.block_size)
    yield f"work: {per_token / 1e6:,.1f} MFLOP a token, forward and backward"
    if tokenized and (tokens / "train" / "index.json").is_file():
        planned = plan.make(params, tokens, tokenizer)
        total = planned.total_steps * planned.tokens_per_step
        there = planned.samples.count * planned.samples.block_size
        yield f"tokens: {there:,} there, {total:,} wanted: {planned.epochs:.2f} epochs, {planned.total_steps:,} steps"
    elif train.max_tokens:
        total = train.max_tokens
        yield f"tokens: {total:,} wanted"
    else:
        return
    device = torch.device(launch.device_of(train))
    peak, how = hardware.peak_flops(device, train.precision)
    world = train.devices * train.num_nodes
    slow, fast = (total * per_token / (peak * world * share) for share in _SHARES_OF_PEAK)
    yield (
        f"time: {console.duration(fast)} to {console.duration(slow)} on {world} x {device.type} "
        f"({_SHARES_OF_PEAK[1]:.0%} to {_SHARES_OF_PEAK[0]:.0%} of {peak / 1e12:,.2f} TFLOP/s, {how})"
    )
