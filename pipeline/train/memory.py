"""What training takes of memory, counted; and what to lower when it runs out.

need = count(params, n_parameters, rows).total          # bytes on one device
with explained(params, ...): ...                        # out of memory becomes advice with figures
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pipeline import console
from pipeline.errors import UserError
from pipeline.model.layout import moe_layers
from pipeline.params import Model, Train


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # with the logits, and the copies of weights that products take

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "activations")
        return ", ".join(f"{part} {console.size(getattr(self, part))}" for part in parts)


def count(model: Model, train: Train, n_parameters: int, rows: int) -> Memory:
    """What a step needs at its peak; `rows` of the head. The state is exact, activations an upper bound.

    On a GPU the experts' products are counted as those of cards without grouped GEMM, which take more.
    """
    weight = 2 if train.precision == "bf16-true" else 4
    # adamw8bit: two moments of a byte, and a float32 scale for each block of 256. muon: one moment, for most weights.
    optimizer = {"adamw": 2 * weight, "muon": weight, "adamw8bit": 2 + 2 * 4 / 256}[train.optimizer.name]
    shards = train.devices * train.num_nodes if train.strategy == "fsdp" else 1
    share = n_parameters / shards
    copies = 2 * n_parameters if train.precision.endswith("mixed") else 0  # autocast's, kept for backward
    activations = copies + _activations(model, train, rows)
    return Memory(round(share * weight), round(share * weight), round(share * optimizer), activations)


def _activations(model: Model, train: Train, rows: int) -> int:
    """What a forward keeps for its backward, and the logits.

    Per token a layer keeps both norms' inputs and outputs, queries, keys, values, attention's output, and for each
    expert visited its input, output and four widths (of a dense MLP four widths). With checkpointing it keeps its
    input, and one layer at a time all.
    """
    size = 4 if train.precision == "32-true" else 2
    tokens = train.micro_batch_size * train.block_size
    head = model.head_size or model.n_embd // model.n_head
    attention = 6 * model.n_embd + (2 * model.n_head + 2 * model.n_query_groups) * head
    moe = set(moe_layers(model))
    visits, copies = tokens * model.n_expert_per_token, 0
    if moe and train.device != "cpu":
        visits, copies = _blocks(model, visits)
    expert = visits * (2 * model.n_embd + 4 * model.moe_intermediate_size)
    expert += tokens * 4 * model.n_shared_expert * model.moe_intermediate_size
    dense = tokens * 4 * model.intermediate_size
    layers = [tokens * attention + (expert if i in moe else dense) for i in range(model.n_layer)]
    inputs = model.n_layer * tokens * model.n_embd
    kept = sum(layers) if not train.activation_checkpointing else max(layers) + inputs
    return round((kept + copies) * size) + _head(model, train, rows, tokens, size)


def _blocks(model: Model, visits: int) -> tuple[int, int]:
    """Visits with the padding to whole blocks, and elements of the blocks' copies of their experts' weights.

    As pipeline/model/expert_kernels.py lays them out. One layer's copies live at a time: in forward, and gathered again
    in backward, there beside their gradients.
    """
    block = max(16, -(-visits // (64 * model.n_expert)) * 16)
    n_blocks = -(-visits // block) + model.n_expert
    copy = 3 * model.moe_intermediate_size * model.n_embd
    return n_blocks * block, 2 * n_blocks * copy


def _head(model: Model, train: Train, rows: int, tokens: int, size: int) -> int:
    """Logits, also in float32 and with their gradient; in chunks, the head's gradient summed in float32 as well."""
    chunk = min(tokens, train.loss_chunk or tokens)
    summed = rows * model.n_embd * (4 + size) if chunk < tokens else 0  # and in the head's type, which it is cast to
    return chunk * rows * (size + 2 * 4) + summed


@contextmanager
def explained(model: Model, train: Train, n_parameters: int, rows: int, device: torch.device) -> Iterator[None]:
    """Turn running out of memory in the block into a UserError that says what to lower, and what that saves."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_shortage(error):
            raise
        raise UserError(advice(model, train, n_parameters, rows, device)) from error


def advice(model: Model, train: Train, n_parameters: int, rows: int, device: torch.device) -> str:
    """What a step needs, and each change that lowers it, the most useful first."""
    now = count(model, train, n_parameters, rows)
    here = ""
    if device.type == "cuda":
        here = f" of {console.size(torch.cuda.get_device_properties(device).total_memory)} on {device}"
    optimizer = train.optimizer.model_copy(update={"name": "adamw8bit"})
    changes: list[tuple[str, dict[str, Any]]] = [
        (
            f"train.micro_batch_size={max(1, train.micro_batch_size // 2)}",
            {"micro_batch_size": max(1, train.micro_batch_size // 2)},
        ),
        ("train.activation_checkpointing=true", {"activation_checkpointing": True}),
        ("train.loss_chunk=1024", {"loss_chunk": 1024}),
    ]
    if device.type == "cuda":
        changes += [
            ("train.precision=bf16-true", {"precision": "bf16-true"}),
            ("train.optimizer.name=adamw8bit", {"optimizer": optimizer}),
        ]
    saved = []
    for words, update in changes:
        less = now.total - count(model, train.model_copy(update=update), n_parameters, rows).total
        if less > 0:
            saved.append((less, words))
    lines = [f"  -S {words} saves about {console.size(less)}" for less, words in sorted(saved, reverse=True)]
    return "\n".join([f"out of memory: a step needs about {console.size(now.total)}{here} ({now}).", *lines])


def _is_shortage(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "can't allocate memory" in text
        or "out of memory" in text
    )
