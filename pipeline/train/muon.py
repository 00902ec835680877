"""Muon on stacked experts: torch.optim.Muon takes matrices only, so each expert is a matrix of its own."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class Muon(torch.optim.Muon):
    """Learning rates follow Moonshot's rule (arXiv 2502.16982): the update has the RMS of AdamW's."""

    def __init__(self, stacked: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        self._sources = list(stacked)
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
