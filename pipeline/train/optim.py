"""Optimizers and learning rate schedules.

optimizers = build(model, train.optimizer, device)     # one, or Muon and AdamW
set_learning_rates(optimizers, train.schedule, step, total_steps)
step_unless(optimizers, bad)                           # `bad`: 0-dim bool tensor; the step is left out where true
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import params
from pipeline.errors import UserError

# Not for Muon: embeddings and the head act on one-hot vectors, and the router's rows compete with each other.
_NOT_FOR_MUON = ("wte", "lm_head", "mlp.gate.weight")


class Muon(torch.optim.Muon):
    """torch.optim.Muon, which takes matrices only, with each expert of a stacked weight as a matrix of its own.

    Learning rates follow Moonshot's rule (arXiv 2502.16982): the update has the RMS of AdamW's.
    """

    def __init__(self, stacked: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        self._sources = [p for p in stacked]
        self._matrices = [
            list(p.detach().flatten(0, -3).unbind()) if p.ndim > 2 else [p.detach()] for p in self._sources
        ]
        flat = [matrix for matrices in self._matrices for matrix in matrices]
        super().__init__(flat, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]  # type: ignore[override]  # torch overloads it
        for source, matrices in zip(self._sources, self._matrices, strict=True):
            if source.grad is not None:
                grads = source.grad.flatten(0, -3).unbind() if source.ndim > 2 else [source.grad]
                for matrix, grad in zip(matrices, grads, strict=True):
                    matrix.grad = grad
        loss = super().step(closure)
        super().zero_grad(set_to_none=True)  # the views only; the model's own gradients are the loop's
        return loss


def build(model: nn.Module, chosen: params.Optimizer, device: torch.device) -> list[torch.optim.Optimizer]:
    """The optimizers of the parameters of `model` as they lie on their device now (so after they were sharded).

    Matrices decay; norms and biases do not. Each group carries its peak learning rate as `peak`.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizers: list[torch.optim.Optimizer] = []
    if chosen.name == "muon":
        hidden = [(n, p) for n, p in named if p.ndim >= 2 and not any(part in n for part in _NOT_FOR_MUON)]
        optimizers.append(Muon([p for _, p in hidden], chosen.muon_lr, chosen.weight_decay))
        taken = {n for n, _ in hidden}
        named = [(n, p) for n, p in named if n not in taken]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": chosen.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers.append(_adamw(groups, chosen, device))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = float(group["lr"])  # a number of its own: torchao keeps the rate in a tensor
    return optimizers


def _adamw(groups: list[dict[str, Any]], chosen: params.Optimizer, device: torch.device) -> torch.optim.Optimizer:
    if chosen.name == "adamw8bit":
        try:
            from torchao.optim import AdamW8bit
        except ImportError:
            raise UserError(
                "train.optimizer.name = 'adamw8bit' needs torchao; install it with: uv sync --extra gpu"
            ) from None
        # Rounding at random keeps updates that are smaller than bfloat16's step; it acts on bfloat16 weights only.
        return AdamW8bit(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, bf16_stochastic_round=True)
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, fused=fused)


def step_unless(optimizers: list[torch.optim.Optimizer], bad: Tensor) -> None:
    """Step each optimizer, or leave its weights and state as they are where `bad` is true.

    Fused AdamW decides on the device (`found_inf`, as torch's GradScaler does); the others make the host wait.
    """
    on_device = [bool(getattr(optimizer, "_step_supports_amp_scaling", False)) for optimizer in optimizers]
    leave_out = not all(on_device) and bool(bad)
    for optimizer, decides in zip(optimizers, on_device, strict=True):
        if decides:
            optimizer.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]
            optimizer.grad_scale = None  # type: ignore[attr-defined]
            optimizer.step()
        elif not leave_out:
            optimizer.step()


def learning_rate(schedule: params.Schedule, peak: float, step: int, total_steps: int) -> float:
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
    optimizers: list[torch.optim.Optimizer], schedule: params.Schedule, step: int, total_steps: int
) -> float:
    """Set every group's rate for this step; return the last one (AdamW's).

    A rate in a tensor is filled, not replaced: torchao's optimizers refuse a step where it is no tensor any more.
    """
    lr = 0.0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            lr = learning_rate(schedule, group["peak"], step, total_steps)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
    return lr
