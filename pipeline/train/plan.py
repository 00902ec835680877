"""What a run will do and take, settled before anything is written: steps, size, memory, the machine's peak.

planned = make(params, tokens, tokenizer)           # a UserError where data, tokenizer and params do not fit
memory(params.model, params.train, planned.weights, rows).total         # bytes on one device
with explained(...): ...                            # out of memory becomes advice with figures
peak_flops(device, precision)                       # what utilization is measured against
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from torch.nn.utils import parametrize

from pipeline import console
from pipeline.errors import UserError
from pipeline.model import build, cpu_kernels, products
from pipeline.model.layout import moe_layers
from pipeline.params import Model, Params, Train
from pipeline.tokens import tokenizer as vocabulary
from pipeline.train.data import Samples
from pipeline.train.optimizers import OPTIMIZERS

_MANY_EPOCHS = 4  # beyond, repeated tokens are worth visibly less (Muennighoff et al. 2023, arXiv 2305.16264)


class Adapter(Protocol):
    """What is trained beside frozen weights."""

    identity: dict[str, Any]  # every setting that decides what is learned, as plain values

    def put_in(self, gpt: build.MoEGPT, seed: int) -> None:
        """Freeze the model's weights and add what trains; also on the meta device."""

    def save(self, gpt: build.MoEGPT, into: Path, tokenizer: Path) -> None:
        """Write the trained model as a litgpt checkpoint folder."""


@dataclass(frozen=True)
class Plan:
    vocab_size: int  # of the tokenizer; the model's may be larger
    eos_id: int
    count: build.Count
    weights: "Weights"
    samples: Samples
    val: Samples
    total_steps: int
    bound: str  # the parameter that ends the run
    tokens_per_step: int
    flops_per_token: float
    adapter: "Adapter | None" = None

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
    if moe_layers(params.model) and not params.train.balance_coef and params.model.router == "softmax":
        console.warn("train.balance_coef = 0: nothing keeps the experts' load even")


# --- memory -----------------------------------------------------------------------------------------------------------

# On a CPU: bytes that torch's libraries take beside tensors, for code that they generate, say, in float32 and in
# bfloat16; and by what glibc's heap takes more for tensors that come and go. Measured: tests/train/test_memory.py.
_LIBRARIES, _WITH_BFLOAT16, _HEAP = 40_000_000, 70_000_000, 1.2
_OLD_CGROUP = ("memory.limit_in_bytes", "memory.usage_in_bytes")


@dataclass(frozen=True)
class Weights:
    """Elements of the weights that a run holds."""

    trained: int
    frozen: int = 0
    summed: int = 0  # of the frozen ones those that a forward adds what was learned to, in a copy


def weights(model: Model, vocab_size: int, adapter: Adapter | None) -> Weights:
    """Counted on the meta device."""
    gpt = build.on_meta(model, vocab_size)
    if adapter:
        adapter.put_in(gpt, 0)
    summed = [module.parametrizations for module in gpt.modules() if parametrize.is_parametrized(module)]
    return Weights(
        trained=sum(p.numel() for p in gpt.parameters() if p.requires_grad),
        frozen=sum(p.numel() for p in gpt.parameters() if not p.requires_grad),
        summed=sum(weight.original.numel() for module in summed for weight in module.values()),
    )


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # with the logits, the copies of weights that matmuls take, and what torch's libraries do

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "activations")
        return ", ".join(f"{part} {console.size(getattr(self, part))}" for part in parts)


def memory(model: Model, train: Train, weights: Weights, rows: int) -> Memory:
    """What a step needs at its peak; `rows` of the head. The state is exact, activations an upper bound.

    On a GPU the experts' matmuls are counted as those of cards without grouped GEMM, which take more. A CPU with
    `precision: auto` is one that multiplies in bfloat16 and has the compiled kernels; without, it takes more.
    """
    weight = 2 if train.precision == "bf16-true" else 4
    optimizer = OPTIMIZERS[train.optimizer.name].state_bytes(weight)
    shards = train.devices * train.num_nodes if train.strategy == "fsdp" else 1
    held, trained = (weights.trained + weights.frozen) / shards, weights.trained / shards
    copies = 2 * (weights.trained + weights.frozen) if train.precision.endswith("mixed") else 0  # kept
    summed = weights.summed + weights.summed // model.n_layer  # kept for backward, where a layer's has its gradient too
    if train.device == "cpu" and train.precision == "auto":
        activations = _activations_with_kernels(model, train, rows) + _WITH_BFLOAT16
    else:
        activations = _activations(model, train, rows) + (_LIBRARIES if train.device == "cpu" else 0)
    activations += copies + summed * weight
    return Memory(round(held * weight), round(trained * weight), round(trained * optimizer), activations)


def _activations(model: Model, train: Train, rows: int) -> int:
    """What a forward keeps for its backward, and the logits.

    Per token a layer keeps both norms' inputs and outputs, queries, keys, values, attention's output, and for each
    assignment to an expert its input, output and four widths (of a dense MLP four widths). With checkpointing it keeps
    its input, and one layer at a time all.
    """
    size = 4 if train.precision == "32-true" else 2
    tokens = train.micro_batch * train.block_size
    head = model.head_size or model.n_embd // model.n_head
    attention = 6 * model.n_embd + (2 * model.n_head + 2 * model.n_query_groups) * head
    moe = set(moe_layers(model))
    assignments, copies = tokens * model.n_expert_per_token, 0
    if moe and train.device != "cpu":
        assignments, copies = _blocks(model, assignments)
    expert = assignments * (2 * model.n_embd + 4 * model.moe_intermediate_size)
    expert += tokens * 4 * model.n_shared_expert * model.moe_intermediate_size
    dense = tokens * 4 * model.intermediate_size
    layers = [tokens * attention + (expert if i in moe else dense) for i in range(model.n_layer)]
    inputs = model.n_layer * tokens * model.n_embd
    kept = sum(layers) if not train.activation_checkpointing else max(layers) + inputs
    return round((kept + copies) * size) + _head(model, train, rows, tokens, size)


def _activations_with_kernels(model: Model, train: Train, rows: int) -> int:
    """As `_activations`, with those of pipeline/model/cpu_kernels.py and matmuls in bfloat16.

    Per token a layer keeps, in float32, both norms' inputs, the second's output, queries, keys, values and attention's
    output; in bfloat16 what both projections multiply, and for each assignment the output and two widths. In backward
    one layer has, for each assignment, three inputs and four widths more, its weights' gradients beside all weights,
    and in float32 gradients of its inputs, norms' outputs, and what attention takes and gives.
    """
    tokens = train.micro_batch * train.block_size
    head = model.head_size or model.n_embd // model.n_head
    attention = 4 * (3 * model.n_embd + 2 * (model.n_head + model.n_query_groups) * head)
    attention += 2 * (model.n_embd + model.n_head * head)
    width, wide, assigned = model.moe_intermediate_size, model.intermediate_size, model.n_expert_per_token
    shared = 2 * 4 * model.n_shared_expert * width
    expert, dense = assigned * 2 * (model.n_embd + 2 * width) + shared, 2 * 4 * wide
    moe = set(moe_layers(model))
    layers = [attention + (expert if i in moe else dense) for i in range(model.n_layer)]
    kept = sum(layers) if not train.activation_checkpointing else max(layers) + 4 * model.n_layer * model.n_embd
    once = assigned * 2 * (3 * model.n_embd + 4 * width) if moe else 2 * 4 * wide
    once += 4 * (6 * model.n_embd + 2 * (model.n_head + model.n_query_groups) * head)
    once += (2 * 4 + 2 * 2) * model.n_embd  # around the head
    of_weights = 2 * 3 * model.n_embd * (len(moe) + 1) * (model.n_expert * width if moe else wide)
    chunk = min(tokens, train.loss_chunk or tokens)  # of logits, whose gradient is written over them
    of_head = 2 * chunk * rows + (4 + 2) * rows * model.n_embd
    return round(_HEAP * (tokens * (kept + once) + of_weights + of_head))


def _blocks(model: Model, assignments: int) -> tuple[int, int]:
    """Assignments with the padding to whole blocks, and elements of the blocks' copies of their experts' weights.

    As pipeline/model/expert_kernels.py lays them out. One layer's copies live at a time: in forward, and gathered again
    in backward, there beside their gradients.
    """
    block = max(16, -(-assignments // (64 * model.n_expert)) * 16)
    n_blocks = -(-assignments // block) + model.n_expert
    copy = 3 * model.moe_intermediate_size * model.n_embd
    return n_blocks * block, 2 * n_blocks * copy


def _head(model: Model, train: Train, rows: int, tokens: int, size: int) -> int:
    """Logits, also in float32 and with their gradient; in chunks, the head's gradient summed in float32 as well."""
    chunk = min(tokens, train.loss_chunk or tokens)
    copied = size if size < 4 else 0  # in the type of what is multiplied, where that is another
    summed = rows * model.n_embd * (4 + copied) if chunk < tokens else 0
    return chunk * rows * (copied + 2 * 4) + summed


@contextmanager
def explained(model: Model, train: Train, weights: Weights, rows: int, device: torch.device) -> Iterator[None]:
    """Turn running out of memory in the block into a UserError that says what to lower, and what that saves."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_shortage(error):
            raise
        raise UserError(advice(model, train, weights, rows, device)) from error


def advice(model: Model, train: Train, weights: Weights, rows: int, device: torch.device | None = None) -> str:
    """What a step needs, and each change that lowers it, the most useful first."""
    now = memory(model, train, weights, rows)
    here = ""
    if device is not None and device.type == "cuda":
        here = f" of {console.size(torch.cuda.get_device_properties(device).total_memory)} on {device}"
    half, kind = max(1, train.micro_batch // 2), device.type if device else train.device
    changes = {f"train.micro_batch_size={half}": {"micro_batch_size": half}} | _changes(train, kind)
    saved = []
    for words, update in changes.items():
        less = now.total - memory(model, train.model_copy(update=update), weights, rows).total
        if less > 0:
            saved.append((less, words))
    lines = [f"  -S {words} saves about {console.size(less)}" for less, words in sorted(saved, reverse=True)]
    return "\n".join([f"out of memory: a step needs about {console.size(now.total)}{here} ({now}).", *lines])


def _changes(train: Train, device: str) -> dict[str, dict[str, Any]]:
    """What lowers memory beside smaller micro batches, as `-S` takes it; first what leaves the numbers as they are."""
    changes: dict[str, dict[str, Any]] = {
        "train.loss_chunk=1024": {"loss_chunk": 1024},
        "train.activation_checkpointing=true": {"activation_checkpointing": True},
    }
    for name, kind in OPTIMIZERS.items():
        if not kind.refusal(name, device, train.strategy):
            update = {"optimizer": train.optimizer.model_copy(update={"name": name})}
            changes[f"train.optimizer.name={name}"] = update
    if device == "cuda" and train.precision != "16-mixed":  # which is chosen where there is no bfloat16
        changes["train.precision=bf16-true"] = {"precision": "bf16-true"}
    return changes


def fitting(model: Model, train: Train, weights: Weights, rows: int, device: str, n_bytes: int) -> list[str] | None:
    """Settings, as `-S` takes them, with which a step needs at most n_bytes of a cpu or cuda; None if none would.

    The last one is the largest micro batch that fits and divides the global batch. Anything else is changed only where
    no micro batch fits without it.
    """
    settings: dict[str, str] = {}  # a later change of the same parameter replaces the former
    changes = iter(_changes(train, device).items())
    while True:
        if size := _largest_micro_batch(model, train, weights, rows, n_bytes):
            settings["train.micro_batch_size"] = str(size)
            return [f"{key}={value}" for key, value in settings.items()]
        for words, update in changes:
            changed = train.model_copy(update=update)
            if _single(model, changed, weights, rows) < _single(model, train, weights, rows):
                key, value = words.split("=")
                settings[key] = value
                train = changed
                break
        else:
            return None


def with_micro_batch(
    model: Model, train: Train, weights: Weights, rows: int, n_bytes: int, before: int | None = None
) -> Train:
    """With `micro_batch_size: auto` settled: the most that n_bytes suffice for, or what it was `before` a run stopped.

    Raises UserError where nothing suffices.
    """
    if train.micro_batch_size != "auto":
        return train
    share = train.global_batch_size // (train.devices * train.num_nodes)
    size = before if before and share % before == 0 else None
    counted = train
    if train.device == "cpu" and train.precision == "auto" and (products.emulated() or cpu_kernels.load()):
        counted = train.model_copy(update={"precision": "32-true"})  # without them a step takes more
    size = size or _largest_micro_batch(model, counted, weights, rows, n_bytes)
    if size is None:
        one = counted.model_copy(update={"micro_batch_size": 1})
        raise UserError(
            f"train.micro_batch_size = auto: {console.size(n_bytes)} do not suffice even for micro batches of one "
            f"sample; {advice(model, one, weights, rows)}"
        )
    return train.model_copy(update={"micro_batch_size": size})


def available(device: torch.device, processes: int = 1) -> int:
    """Bytes that a process may take on a device, a tenth left aside; `processes` share a CPU's memory."""
    if device.type == "cuda":
        return int(0.9 * torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(0.9 * torch.mps.recommended_max_memory())
    free = psutil.virtual_memory().available
    for folder in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")):  # a container's own bound
        names = ("memory.max", "memory.current") if folder.name == "cgroup" else _OLD_CGROUP
        found = [(folder / name).read_text().strip() for name in names if (folder / name).is_file()]
        if len(found) == 2 and all(each.isdigit() for each in found):
            free = min(free, int(found[0]) - int(found[1]))
    return int(0.9 * free / processes)


def _single(model: Model, train: Train, weights: Weights, rows: int) -> int:
    """Bytes that a step needs with a micro batch of one sample."""
    return memory(model, train.model_copy(update={"micro_batch_size": 1}), weights, rows).total


def _largest_micro_batch(model: Model, train: Train, weights: Weights, rows: int, n_bytes: int) -> int | None:
    share = train.global_batch_size // (train.devices * train.num_nodes)
    for size in (size for size in range(share, 0, -1) if share % size == 0):
        if memory(model, train.model_copy(update={"micro_batch_size": size}), weights, rows).total <= n_bytes:
            return size
    return None


def _is_shortage(error: BaseException) -> bool:
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(each in str(error).lower() for each in words)


# --- the machine ------------------------------------------------------------------------------------------------------

# Dense TFLOP/s of 16-bit tensor cores with float32 accumulation, from the makers' datasheets (without sparsity).
# fmt: off
DATASHEET: dict[str, float] = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "A10G": 70, "A10": 125,
    "L40S": 362, "L4": 121, "RTX 5090": 209.5, "RTX 4090": 165.2, "RTX 4080": 97.5, "RTX 3090": 71, "RTX 3060": 25.6,
    "V100": 125, "T4": 65,
}
# fmt: on


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """FLOP/s that one device can reach in this precision, and how that is known: datasheet or a measured matmul."""
    if device.type == "cuda" and precision != "32-true":
        known = known_card(torch.cuda.get_device_name(device))
        if known:
            return DATASHEET[known] * 1e12, f"datasheet of {known}"
    dtype = {"32-true": torch.float32, "auto": torch.float32, "16-mixed": torch.float16}.get(precision, torch.bfloat16)
    return gemm_flops(device, dtype), f"measured matmul in {str(dtype).removeprefix('torch.')}"


def known_card(name: str) -> str | None:
    """The entry of the table for a card's name, by whole words: an L40 is no L4, a T400 no T4, a 3080 Ti no 3080."""
    words = name.lower().replace("-", " ").split()
    for known in DATASHEET:
        wanted = known.lower().split()
        at = [i for i in range(len(words)) if words[i : i + len(wanted)] == wanted]
        if at and words[at[0] + len(wanted) : at[0] + len(wanted) + 1] not in (["ti"], ["super"], ["d"], ["laptop"]):
            return known
    return None


def gemm_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOP/s of the fastest of the square matmuls that fit in `seconds`."""
    n = 1024 if device.type == "cpu" else 4096
    a = torch.ones(n, n, device=device, dtype=dtype)
    b = torch.ones(n, n, device=device, dtype=dtype)
    out = a @ b
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < seconds:
        wait(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
