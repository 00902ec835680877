"""The table of optimizers, and learning rate schedules. Imports no torch, so that checking the parameters stays quick.

optimizers = build(model, train.optimizer, device)     # one, or Muon and AdamW
set_learning_rates(optimizers, train.schedule, step, total_steps)
step_unless(optimizers, non_finite)                    # a 0-dim bool tensor; the step is left out where true

A new optimizer is an entry of OPTIMIZERS: parameters, memory plan, checks of the device and docs follow from it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline import params

    Named = list[tuple[str, nn.Parameter]]
    Build = Callable[[Named, params.Optimizer, torch.device], list[torch.optim.Optimizer]]


@dataclass(frozen=True)
class Kind:
    """One optimizer: how it is built, what its state takes, where it runs."""

    build: "Build"
    state_bytes: Callable[[int], float]  # of state a parameter, for weights of so many bytes
    devices: tuple[str, ...] = ("cpu", "cuda", "mps")
    why_not_fsdp: str | None = None  # None: it goes with sharded parameters

    def refusal(self, name: str, device: str, strategy: str) -> str | None:
        """Why it does not run there, and what to take instead; None where it does, or the device is not known yet."""
        if device not in ("auto", *self.devices):
            return f"optimizer.name: {name} runs on {' or '.join(self.devices)}, not on {device}; take adamw"
        if strategy == "fsdp" and self.why_not_fsdp:
            return f"strategy: fsdp {self.why_not_fsdp}; take optimizer.name: adamw, or strategy: ddp"
        return None


# --- how each is built ------------------------------------------------------------------------------------------------


def _decaying(named: "Named", chosen: "params.Optimizer") -> list[dict[str, Any]]:
    """Parameter groups: matrices decay; norms and biases do not."""
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": chosen.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _adamw(named: "Named", chosen: "params.Optimizer", device: "torch.device") -> "list[torch.optim.Optimizer]":
    from torch.optim import AdamW

    groups, fused = _decaying(named, chosen), device.type in ("cpu", "cuda")
    return [AdamW(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, fused=fused)]


def _muon(named: "Named", chosen: "params.Optimizer", device: "torch.device") -> "list[torch.optim.Optimizer]":
    """Muon for the layers' matrices, AdamW for the rest: embeddings and the head act on one-hot vectors, and the
    router's rows compete with each other."""
    from pipeline.train.muon import Muon

    others = ("wte", "lm_head", "mlp.gate.weight")
    hidden = [p for name, p in named if p.ndim >= 2 and not any(part in name for part in others)]
    taken = {id(p) for p in hidden}
    rest = [(name, p) for name, p in named if id(p) not in taken]
    muon = [Muon(hidden, chosen.muon_lr, chosen.weight_decay)] if hidden else []
    return [*muon, *(_adamw(rest, chosen, device) if rest else [])]  # an adapter may have none of a kind


def _adamw8bit(named: "Named", chosen: "params.Optimizer", device: "torch.device") -> "list[torch.optim.Optimizer]":
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        raise UserError(
            "train.optimizer.name = 'adamw8bit' needs torchao; install it with: uv sync --extra gpu"
        ) from None
    # Rounding at random keeps updates that are smaller than bfloat16's step; it acts on bfloat16 weights only.
    settings: dict[str, Any] = {"lr": chosen.lr, "betas": chosen.betas, "eps": chosen.eps}
    return [AdamW8bit(_decaying(named, chosen), **settings, bf16_stochastic_round=True)]


OPTIMIZERS = {
    "adamw": Kind(_adamw, lambda weight: 2 * weight),
    # One moment for most weights.
    "muon": Kind(_muon, lambda weight: weight, why_not_fsdp="cuts matrices that muon needs whole"),
    # Two moments of a byte, and a float32 scale for each block of 256.
    "adamw8bit": Kind(
        _adamw8bit,
        lambda _: 2 + 2 * 4 / 256,
        devices=("cuda",),
        why_not_fsdp="cuts the blocks that adamw8bit scales",
    ),
}


# --- what the loop calls ----------------------------------------------------------------------------------------------


def build(model: "nn.Module", chosen: "params.Optimizer", device: "torch.device") -> "list[torch.optim.Optimizer]":
    """The optimizers of the parameters of `model` as they lie on their device now (so after they were sharded).

    Each group carries its peak learning rate as `peak`.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizers = OPTIMIZERS[chosen.name].build(named, chosen, device)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = float(group["lr"])  # a number of its own: torchao keeps the rate in a tensor
    return optimizers


def step_unless(optimizers: "list[torch.optim.Optimizer]", non_finite: "Tensor") -> None:
    """Step each optimizer, or leave its weights and state as they are where `non_finite` is true.

    Fused AdamW decides on the device (`found_inf`, as torch's GradScaler does); the others make the host wait.
    """
    on_device = [bool(getattr(optimizer, "_step_supports_amp_scaling", False)) for optimizer in optimizers]
    leave_out = not all(on_device) and bool(non_finite)
    for optimizer, decides in zip(optimizers, on_device, strict=True):
        if decides:
            optimizer.found_inf = non_finite.float()  # type: ignore[attr-defined]
            optimizer.grad_scale = None  # type: ignore[attr-defined]
            optimizer.step()
        elif not leave_out:
            optimizer.step()


def learning_rate(schedule: "params.Schedule", peak: float, step: int, total_steps: int) -> float:
    """The rate of a step (from 0): up to `peak` over the warm-up, at the floor in the last step."""
    warmup = round(schedule.warmup if schedule.warmup >= 1 else schedule.warmup * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    floor = min(peak, max(schedule.min_lr, schedule.min_lr_fraction * peak))
    begin = warmup
    if schedule.name == "constant":
        return peak
    if schedule.name == "wsd":
        begin = max(warmup, total_steps - max(1, round(schedule.decay * total_steps)))
    progress = min(1.0, max(0, step - begin) / max(1, total_steps - 1 - begin))
    share = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.name == "cosine" else 1 - progress
    return floor + (peak - floor) * share


def set_learning_rates(
    optimizers: "list[torch.optim.Optimizer]", schedule: "params.Schedule", step: int, total_steps: int
) -> float:
    """Set every group's rate for this step; return the last one (AdamW's).

    A rate in a tensor is filled, not replaced: torchao's optimizers refuse a step where it is no tensor any more.
    """
    lr = 0.0
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        lr = learning_rate(schedule, group["peak"], step, total_steps)
        if isinstance(group["lr"], float):
            group["lr"] = lr
        else:
            group["lr"].fill_(lr)
    return lr
