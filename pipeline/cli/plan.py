"""`moe plan`: what a training run would take, counted before anything is trained, for the machine that params name.

for line in forecast(wanted(Path("params.yaml"), ["train=gpu16gb"]), tokens, tokenizer): print(line)

Imports no torch, but for `measure`, an adapter, and where a GPU may be here: the answer comes within a second.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ByteSize, Field, TypeAdapter, ValidationError

from pipeline import console, params
from pipeline.errors import UserError
from pipeline.model import size
from pipeline.model.device import kind
from pipeline.tokens import tokenizer as vocabulary
from pipeline.train import hardware, memory, plan
from pipeline.train.optimizers import OPTIMIZERS

_SHARES_OF_PEAK = (0.2, 0.5)  # what runs reach: small models and old cards the one, large ones on new cards the other
_SHARES_OF_CPU = (0.3, 2.0)  # of its peak in float32, with `precision: auto`: the most where it has bfloat16
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "f32": 4, "f16": 2, "q8_0": 34 / 32}  # of a weight, exported
_ALIKE = 4  # work of a token, up to which times the speed of one training tells that of another
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
    within: int | None = None,
    card: str | None = None,
    adapter: plan.Adapter | None = None,
    measure: bool = False,
    report: Path | None = None,
) -> Iterator[str]:
    """Lines on parameters, memory on one device, disk, tokens and time; for a GPU that is not here, by its datasheet.

    `adapter`: what trains beside frozen weights. `within`: bytes of a device, and what fits into them. `card`: the GPU
    that the time is told for; `measure`: the time is told by training on this machine for some seconds; `report`: of
    an earlier training here, whose speed tells it. Without a token set (nothing was tokenized yet) what depends on it
    is left out and said so.
    Raises UserError where params and data do not fit.
    """
    model, elsewhere = params.model, bool(card) or params.train.device == "cuda"  # or it may be
    device = "cuda" if elsewhere else kind(params.train.device, "train.device")
    train = hardware.settled(params.train, device)
    tokenized = (tokenizer / "tokenizer.json").is_file()
    if tokenized and model.vocab_size is not None:  # the tokens here may be of another tokenizer than this model's
        tokenized = vocabulary.vocab_size(tokenizer) <= model.vocab_size
    vocab_size = vocabulary.vocab_size(tokenizer) if tokenized else model.vocab_size or params.tokenizer.vocab_size
    if vocab_size is None:
        yield "vocabulary: unknown until `dvc repro tokenize` has run, or model.vocab_size is set"
        return
    count = size.count(model, vocab_size)
    yield f"vocabulary: {vocab_size:,} tokens{'' if tokenized else ' (from the parameters; nothing is tokenized yet)'}"
    yield f"parameters: {count.total:,} in all, {count.active:,} active for each token"
    resolved, rows = size.resolved(model, vocab_size), size.padded_rows(model, vocab_size)
    weights = plan.weights(model, vocab_size, adapter)
    if weights.frozen:
        yield f"trained: {weights.trained:,} parameters of an adapter, {weights.trained / weights.frozen:.1%}"
    train, words = _with_micro_batch(resolved, train, weights, rows, within, elsewhere)
    yield from words
    need = memory.needed(resolved, train, weights, rows)
    yield f"memory on each device: about {console.size(need.total)} ({need})"
    if within is not None:
        settings = memory.fitting(resolved, train, weights, rows, device, within)
        yield _within(console.size(within), need.total <= within, settings)
    yield _disk(params, weights, vocab_size)
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
        from pipeline.train import calibration

        rate = calibration.tokens_per_second(model, params.train, vocab_size, adapter) * world
        how = f"{rate:,.0f} tokens/s, measured for some seconds, not compiled"
        yield f"time: {console.duration(total / rate)} on {world} x {device} ({how})"
        return
    for name, speeds, how in _speeds(train, card, report, per_token):
        times = " to ".join(console.duration(total * per_token / (speed * world)) for speed in speeds)
        yield f"time: {times} on {world} x {name} ({how})"


def _with_micro_batch(
    model: params.Model, train: params.Train, weights: memory.Weights, rows: int, within: int | None, elsewhere: bool
) -> tuple[params.Train, list[str]]:
    """With `micro_batch_size: auto` settled as training would, or for `within`; where neither is known, for one."""
    if train.micro_batch_size != "auto":
        return train, []
    if within is None and elsewhere and kind("auto", "train.device") != "cuda":
        one = train.model_copy(update={"micro_batch_size": 1})
        return one, ["micro batch: the most that fit where it trains; for one sample, or with --memory for a card:"]
    free = within or memory.available(train.device, train.devices)
    train = memory.with_micro_batch(model, train, weights, rows, free)
    return train, [f"micro batch: {train.micro_batch} samples, the most that {console.size(free)} suffice for"]


def _disk(params: params.Params, weights: memory.Weights, vocab_size: int) -> str:
    """What training and export write, with DVC's copies; one checkpoint more than are kept, while it is written."""
    train, elements = params.train, weights.frozen + weights.trained
    element = 2 if train.precision == "bf16-true" else 4
    checkpoint = elements * element + weights.trained * OPTIMIZERS[train.optimizer.name].state_bytes(element)
    exported = [_BYTES[params.export.dtype], *(_BYTES[kind] for kind in params.export.gguf)]
    parts = {"the model": elements * element, "exported": elements * sum(exported)}
    if train.max_tokens:
        parts["tokens, if none is read twice,"] = train.max_tokens * (2 if vocab_size <= 2**16 else 4)
    parts["DVC's copies of these"] = sum(parts.values())
    parts = {f"{train.keep_checkpoints + 1} checkpoints": (train.keep_checkpoints + 1) * checkpoint} | parts
    listed = ", ".join(f"{part} {console.size(round(n))}" for part, n in parts.items())
    return f"disk: about {console.size(round(sum(parts.values())))} ({listed})"


def _within(memory: str, fits: bool, settings: list[str] | None) -> str:
    if settings is None:
        return f"{memory}: will not fit, whatever the settings of train; take a smaller model"
    largest = " ".join(f"-S {setting}" for setting in settings)
    if fits:
        return f"{memory}: fits; the largest micro batch that does: {largest}"
    return f"{memory}: will not fit; what would: {largest}"


class _Report(BaseModel):
    """What is read of reports/train.json."""

    device: str
    devices: int = Field(ge=1)
    precision: str
    tokens_per_second: float = Field(gt=0)
    flops_per_token: float = Field(gt=0)


def _speeds(
    train: params.Train, card: str | None, report: Path | None, per_token: float
) -> Iterator[tuple[str, list[float], str]]:
    """Devices that could train, the FLOP/s of one, or the most and the least, and how those are known."""
    if card is not None:
        if (known := hardware.known_card(card)) is None:
            raise UserError(f"--device {card}: no datasheet of it here; known are {', '.join(hardware.DATASHEET)}")
        yield known, *_of_peak(hardware.DATASHEET[known] * 1e12, "its datasheet in 16 bits")
        return
    try:
        device = hardware.device_of(train)
    except UserError as elsewhere:
        if train.device != "cuda":
            raise
        console.warn(f"not for this machine: {elsewhere}")
        for name in _CARDS:
            yield name, *_of_peak(hardware.DATASHEET[name] * 1e12, "its datasheet in 16 bits")
        return
    if report is not None and (reached := _reached(report, device, train.precision, per_token)):
        yield device, [reached], f"{reached / 1e12:,.2f} TFLOP/s, as in {report}; --measure tries this model"
    elif device == "cpu":
        shares = _SHARES_OF_CPU if train.precision == "auto" else _SHARES_OF_PEAK
        yield device, *_of_peak(hardware.cpu_flops(), "measured matmul in float32; --measure tells it closer", shares)
    else:
        import torch

        yield device, *_of_peak(*hardware.peak_flops(torch.device(device), train.precision))


def _of_peak(peak: float, how: str, shares: tuple[float, float] = _SHARES_OF_PEAK) -> tuple[list[float], str]:
    least, most = shares
    return [peak * most, peak * least], f"{most:.0%} to {least:.0%} of {peak / 1e12:,.2f} TFLOP/s, {how}"


def _reached(report: Path, device: str, precision: str, per_token: float) -> float | None:
    """FLOP/s of one device in the training of a report; None where there was none, or one of another kind."""
    try:
        known = _Report.model_validate_json(report.read_bytes())
    except (OSError, ValidationError):
        return None
    chosen = known.precision.startswith("32-true") if precision == "auto" else known.precision == precision
    alike = known.device == device and chosen and 1 / _ALIKE <= known.flops_per_token / per_token <= _ALIKE
    return known.tokens_per_second * known.flops_per_token / known.devices if alike else None
