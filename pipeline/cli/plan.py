"""`moe plan`: what a training run would take, counted before anything is trained, for the machine that params name.

for line in forecast(wanted(Path("params.yaml"), ["train=gpu16gb"]), tokens, tokenizer): print(line)
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError

from pipeline import console, params
from pipeline.errors import UserError
from pipeline.model import build
from pipeline.model.device import resolve
from pipeline.tokens import tokenizer as vocabulary
from pipeline.train import calibration, launch, plan

_SHARES_OF_PEAK = (0.2, 0.5)  # what runs reach: small models and old cards the one, large ones on new cards the other
_CARDS = ("T4", "RTX 3060", "RTX 4090", "A100", "H100")  # of which the time is told where the GPU is elsewhere


def wanted(params_file: Path, overrides: list[str]) -> params.Params:
    """The parameters of the file; with overrides, what `dvc exp run -S` would compose from configs/ and train with."""
    if not overrides:
        return params.load(params_file)
    from pipeline.cli.compose import compose

    with TemporaryDirectory() as folder:
        compose(Path(folder) / "params.yaml", overrides=overrides)
        return params.load(Path(folder) / "params.yaml")


def n_bytes(memory: str) -> int:
    """A size as people write it, such as 6GB or 5.8 GiB. Raises UserError where it is none."""
    try:
        size = TypeAdapter(ByteSize).validate_python(memory)
    except ValidationError:
        size = ByteSize(0)
    if size <= 0:
        raise UserError(f"--memory {memory}: not a size; write it as 6GB or 5.8GiB")
    return size


def forecast(
    params: params.Params,
    tokens: Path,
    tokenizer: Path,
    memory: int | None = None,
    card: str | None = None,
    adapter: plan.Adapter | None = None,
    measure: bool = False,
) -> Iterator[str]:
    """Lines on parameters, memory on one device, tokens and time; for a GPU that is not here, by its datasheet.

    `adapter`: what trains beside frozen weights. With `memory`, bytes of a device, also what fits into it; with `card`,
    the time on that GPU; with `measure`, the time by training on this machine for some seconds. Without a token set
    (nothing was tokenized yet) what depends on it is left out and said so.
    Raises UserError where params and data do not fit.
    """
    model = params.model
    elsewhere = card or params.train.device == "cuda"  # or it may be
    kind = "cuda" if elsewhere else resolve(params.train.device, "train.device").type
    train = launch.settled(params.train, kind)
    tokenized = (tokenizer / "tokenizer.json").is_file()
    if tokenized and model.vocab_size is not None:  # the tokens here may be of another tokenizer than this model's
        tokenized = vocabulary.vocab_size(tokenizer) <= model.vocab_size
    vocab_size = vocabulary.vocab_size(tokenizer) if tokenized else model.vocab_size or params.tokenizer.vocab_size
    if vocab_size is None:
        yield "vocabulary: unknown until `dvc repro tokenize` has run, or model.vocab_size is set"
        return
    count = build.count(model, vocab_size)
    yield f"vocabulary: {vocab_size:,} tokens{'' if tokenized else ' (from the parameters; nothing is tokenized yet)'}"
    yield f"parameters: {count.total:,} in all, {count.active:,} active for each token"
    rows = build.config(model, vocab_size).padded_vocab_size
    resolved = build.resolved(model, vocab_size)
    weights = plan.weights(model, vocab_size, adapter)
    if weights.frozen:
        yield f"trained: {weights.trained:,} parameters of an adapter, {weights.trained / weights.frozen:.1%}"
    train, words = _with_micro_batch(resolved, train, weights, rows, memory, bool(elsewhere))
    yield from words
    need = plan.memory(resolved, train, weights, rows)
    yield f"memory on each device: about {console.size(need.total)} ({need})"
    if memory is not None:
        settings = plan.fitting(resolved, train, weights, rows, kind, memory)
        yield _within(console.size(memory), need.total <= memory, settings)
    per_token = count.flops_per_token(train.block_size)
    yield f"work: {per_token / 1e6:,.1f} MFLOP per token, forward and backward"
    if tokenized and (tokens / "train" / "index.json").is_file():
        planned = plan.make(params, tokens, tokenizer, adapter)
        total = planned.total_steps * planned.tokens_per_step
        available = planned.samples.count * planned.samples.block_size
        yield f"tokens: {total:,} of {available:,}: {planned.epochs:.2f} epochs, {planned.total_steps:,} steps"
    elif train.max_tokens:
        total = train.max_tokens
        yield f"tokens: {total:,}"
    else:
        yield "tokens and time: unknown until `dvc repro tokenize` has run"
        return
    world = train.devices * train.num_nodes
    if measure:
        rate = calibration.tokens_per_second(model, params.train, vocab_size, adapter) * world
        how = f"{rate:,.0f} tokens/s, measured for some seconds, not compiled"
        yield f"time: {console.duration(total / rate)} on {world} x {kind} ({how})"
        return
    for name, peak, how in _peaks(train, card):
        slow, fast = (console.duration(total * per_token / (peak * world * share)) for share in _SHARES_OF_PEAK)
        used = f"{_SHARES_OF_PEAK[1]:.0%} to {_SHARES_OF_PEAK[0]:.0%} of {peak / 1e12:,.2f} TFLOP/s, {how}"
        yield f"time: {fast} to {slow} on {world} x {name} ({used})"


def _with_micro_batch(
    model: params.Model, train: params.Train, weights: plan.Weights, rows: int, memory: int | None, elsewhere: bool
) -> tuple[params.Train, list[str]]:
    """With `micro_batch_size: auto` settled as training would, or for `memory`; where neither is known, for one."""
    if train.micro_batch_size != "auto":
        return train, []
    if memory is None and elsewhere and not torch.cuda.is_available():
        one = train.model_copy(update={"micro_batch_size": 1})
        return one, ["micro batch: the most that fit where it trains; for one sample, or with --memory for a card:"]
    free = memory or plan.available(torch.device(train.device), train.devices)
    train = plan.with_micro_batch(model, train, weights, rows, free)
    return train, [f"micro batch: {train.micro_batch} samples, the most that {console.size(free)} suffice for"]


def _within(memory: str, fits: bool, settings: list[str] | None) -> str:
    if settings is None:
        return f"{memory}: will not fit, whatever the settings of train; take a smaller model"
    largest = " ".join(f"-S {setting}" for setting in settings)
    if fits:
        return f"{memory}: fits; the largest micro batch that does: {largest}"
    return f"{memory}: will not fit; what would: {largest}"


def _peaks(train: params.Train, card: str | None) -> Iterator[tuple[str, float, str]]:
    """Devices that could train, their FLOP/s, and how those are known: measured where the device is here."""
    if card is not None:
        if (known := plan.known_card(card)) is None:
            raise UserError(f"--device {card}: no datasheet of it here; known are {', '.join(plan.DATASHEET)}")
        yield known, plan.DATASHEET[known] * 1e12, "its datasheet in 16 bits"
        return
    try:
        device = torch.device(launch.device_of(train))
    except UserError as elsewhere:
        if train.device != "cuda":
            raise
        console.warn(f"not for this machine: {elsewhere}")
        for name in _CARDS:
            yield name, plan.DATASHEET[name] * 1e12, "its datasheet in 16 bits"
    else:
        yield device.type, *plan.peak_flops(device, train.precision)
