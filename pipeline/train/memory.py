"""What a training step needs of a device's memory, counted from params alone, and what would lower it.

    needed(params.model, params.train, weights, rows).total                 # bytes on one device
    fitting(params.model, params.train, weights, rows, "cuda", 6 * 10**9)   # settings that fit into 6 GB
    with explained(...): ...                                                # out of memory becomes advice with figures

Imports no torch where nothing is on a device yet: planning is quick.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipeline import console
from pipeline.errors import UserError
from pipeline.model.layout import moe_layers
from pipeline.train.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    import torch

    from pipeline.params import Model, Train

# On a CPU: bytes that torch's libraries take beside tensors, for code that they generate, say, in float32 and in
# bfloat16; and by what glibc's heap takes more for tensors that come and go. Measured: tests/train/test_memory.py.
_LIBRARIES, _WITH_BFLOAT16, _HEAP = 40_000_000, 70_000_000, 1.2
# Folder of a control group's version: files of its bound and use, and the figure of memory.stat that can be dropped.
_CGROUPS = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@dataclass(frozen=True)
class Weights:
    """Elements of the weights that a run holds."""

    trained: int
    frozen: int = 0
    summed: int = 0  # of the frozen ones those that a forward adds what was learned to, in a copy


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


def needed(model: "Model", train: "Train", weights: Weights, rows: int) -> Memory:
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


def _activations(model: "Model", train: "Train", rows: int) -> int:
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


def _activations_with_kernels(model: "Model", train: "Train", rows: int) -> int:
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


def _blocks(model: "Model", assignments: int) -> tuple[int, int]:
    """Assignments with the padding to whole blocks, and elements of the blocks' copies of their experts' weights.

    As pipeline/model/expert_kernels.py lays them out. One layer's copies live at a time: in forward, and gathered again
    in backward, there beside their gradients.
    """
    block = max(16, -(-assignments // (64 * model.n_expert)) * 16)
    n_blocks = -(-assignments // block) + model.n_expert
    copy = 3 * model.moe_intermediate_size * model.n_embd
    return n_blocks * block, 2 * n_blocks * copy


def _head(model: "Model", train: "Train", rows: int, tokens: int, size: int) -> int:
    """Logits, also in float32 and with their gradient; in chunks, the head's gradient summed in float32 as well."""
    chunk = min(tokens, train.loss_chunk or tokens)
    copied = size if size < 4 else 0  # in the type of what is multiplied, where that is another
    summed = rows * model.n_embd * (4 + copied) if chunk < tokens else 0
    return chunk * rows * (copied + 2 * 4) + summed


@contextmanager
def explained(model: "Model", train: "Train", weights: Weights, rows: int, device: "torch.device") -> Iterator[None]:
    """Turn running out of memory in the block into a UserError that says what to lower, and what that saves."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's are RuntimeErrors
        if not _is_shortage(error):
            raise
        raise UserError(advice(model, train, weights, rows, device)) from error


def advice(model: "Model", train: "Train", weights: Weights, rows: int, device: "torch.device | None" = None) -> str:
    """What a step needs, and each change that lowers it, the most useful first."""
    now = needed(model, train, weights, rows)
    here = ""
    if device is not None and device.type == "cuda":
        import torch

        here = f" of {console.size(torch.cuda.get_device_properties(device).total_memory)} on {device}"
    half, kind = max(1, train.micro_batch // 2), device.type if device else train.device
    changes = {f"train.micro_batch_size={half}": {"micro_batch_size": half}} | _changes(train, kind)
    saved = []
    for words, update in changes.items():
        less = now.total - needed(model, train.model_copy(update=update), weights, rows).total
        if less > 0:
            saved.append((less, words))
    lines = [f"  -S {words} saves about {console.size(less)}" for less, words in sorted(saved, reverse=True)]
    return "\n".join([f"out of memory: a step needs about {console.size(now.total)}{here} ({now}).", *lines])


def _changes(train: "Train", device: str) -> dict[str, dict[str, Any]]:
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


def fitting(model: "Model", train: "Train", weights: Weights, rows: int, device: str, n_bytes: int) -> list[str] | None:
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
    model: "Model", train: "Train", weights: Weights, rows: int, n_bytes: int, before: int | None = None
) -> "Train":
    """With `micro_batch_size: auto` settled: the most that n_bytes suffice for, or what it was `before` a run stopped.

    Raises UserError where nothing suffices.
    """
    if train.micro_batch_size != "auto":
        return train
    share = train.global_batch_size // (train.devices * train.num_nodes)
    size = before if before and share % before == 0 else None
    counted = train
    if train.device == "cpu" and train.precision == "auto" and _without_kernels():
        counted = train.model_copy(update={"precision": "32-true"})  # without them a step takes more
    size = size or _largest_micro_batch(model, counted, weights, rows, n_bytes)
    if size is None:
        one = counted.model_copy(update={"micro_batch_size": 1})
        raise UserError(
            f"train.micro_batch_size = auto: {console.size(n_bytes)} do not suffice even for micro batches of one "
            f"sample; {advice(model, one, weights, rows)}"
        )
    return train.model_copy(update={"micro_batch_size": size})


def _without_kernels() -> bool:
    from pipeline.model import cpu_kernels, products

    return products.emulated() or cpu_kernels.load() is not None


def available(device: str, processes: int = 1) -> int:
    """Bytes that a process may take on a device (cpu, cuda:1), a tenth left aside; `processes` share a CPU's."""
    kind = device.partition(":")[0]
    if kind != "cpu":
        import torch

        if kind == "mps":
            return int(0.9 * torch.mps.recommended_max_memory())
        return int(0.9 * torch.cuda.mem_get_info(device)[0])
    return int(0.9 * min(psutil.virtual_memory().available, _left_in_container(Path("/sys/fs/cgroup"))) / processes)


def _left_in_container(groups: Path) -> float:
    """Bytes of a container's own bound that are free, or taken by copies of files that it can drop; else infinity."""
    for folder, (bound, used, droppable) in _CGROUPS.items():
        files = [groups / folder / name for name in (bound, used, "memory.stat")]
        if all(file.is_file() for file in files):
            most, now, stat = (file.read_text().split() for file in files)
            dropped = dict(zip(stat[::2], stat[1::2], strict=False)).get(droppable, "0")
            return int(most[0]) - int(now[0]) + int(dropped) if most[0].isdigit() else math.inf  # "max": no bound
    return math.inf


def _single(model: "Model", train: "Train", weights: Weights, rows: int) -> int:
    """Bytes that a step needs with a micro batch of one sample."""
    return needed(model, train.model_copy(update={"micro_batch_size": 1}), weights, rows).total


def _largest_micro_batch(model: "Model", train: "Train", weights: Weights, rows: int, n_bytes: int) -> int | None:
    share = train.global_batch_size // (train.devices * train.num_nodes)
    for size in (size for size in range(share, 0, -1) if share % size == 0):
        if needed(model, train.model_copy(update={"micro_batch_size": size}), weights, rows).total <= n_bytes:
            return size
    return None


def _is_shortage(error: BaseException) -> bool:
    words = ("can't allocate memory", "out of memory")
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # which is torch's
    return known or any(each in str(error).lower() for each in words)
