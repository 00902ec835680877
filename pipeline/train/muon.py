"""Muon (Jordan et al. 2024) on matrices and on stacks of them: one batch of matmuls for all experts of a layer.

Legend: M matrices of R rows and C columns.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_MOMENTUM, _STEPS, _COEFFICIENTS = 0.95, 5, (3.4445, -4.7750, 2.0315)  # as torch.optim.Muon has them


class Muon(torch.optim.Optimizer):
    """As `torch.optim.Muon`, which takes single matrices only; the last two dimensions of a parameter are a matrix.

    Learning rates follow Moonshot's rule (arXiv 2502.16982): the update has the RMS of AdamW's.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # the loop has no closure
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                moment, grad = state["momentum_buffer"], parameter.grad
                moment.lerp_(grad, 1 - _MOMENTUM)
                update = orthogonalized(grad.lerp(moment, _MOMENTUM).view(-1, *grad.shape[-2:]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                rate = 0.2 * max(parameter.shape[-2:]) ** 0.5 * group["lr"]
                parameter.add_(update.view(parameter.shape), alpha=-rate)


def orthogonalized(matrix_MRC: Tensor) -> Tensor:
    """Each matrix with its singular values moved near one (0.7 to 1.2): five steps of Newton and Schulz's iteration."""
    x = matrix_MRC.to(_fastest(matrix_MRC.device))
    if tall := x.size(1) > x.size(2):
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _fastest(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it faster; the iteration needs no more than its precision.

    Asked of the processor and not measured: a run that is resumed must do as before.
    """
    native = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if device.type == "cpu" and not any(getattr(torch.cpu, name, bool)() for name in native):
        return torch.float32
    return torch.bfloat16
