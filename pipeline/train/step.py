"""One optimizer step: forward and backward over the micro batches, clipping, and leaving out what is not finite.

    step = Step(fabric, objective, optimizers, train)      # objective: an Objective that Fabric has set up
    step(number, batches); step.metrics.read()             # reading the metrics is the only wait for the device

Dimensions: B micro batch, S = T + 1 tokens of a sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from pipeline.model.blocks import product
from pipeline.model.build import MoEGPT, apart, documents
from pipeline.model.routing import Routing, RoutingStats, RoutingTotals, routing
from pipeline.params import Train
from pipeline.tokens.flags import FIRST, ID, LOSS
from pipeline.train import launch, losses, optimizers


def accumulation(train: Train) -> int:
    """Micro batches that each device adds up for one optimizer step."""
    return train.global_batch_size // (train.micro_batch * train.devices * train.num_nodes)


class Parts(NamedTuple):
    """Means over a micro batch, nats (lm) and as in losses.Auxiliary, not weighted."""

    lm: Tensor
    balance: Tensor
    z: Tensor


class Objective(nn.Module):
    """What is minimized, as one module, so that DDP and FSDP see each forward of the model."""

    def __init__(self, gpt: MoEGPT, train: Train, eos_id: int, flags: bool = False) -> None:
        """`flags`: tokens carry those of pipeline/tokens/flags.py."""
        super().__init__()
        self.gpt = gpt
        self.balance = losses.GlobalBatch()
        self.flags = flags
        self.eos_id, self._apart = eos_id, train.document_mask
        self._chunk = train.loss_chunk
        self._weights = (train.balance_coef, train.z_loss_coef)
        self.seen: list[Routing] = []

    def forward(self, tokens_BS: Tensor) -> tuple[Tensor, Parts]:
        """What to minimize and its parts; in eval mode the language-model loss alone."""
        idx_BT, target_BT = tokens_BS[:, :-1], tokens_BS[:, 1:]
        layout: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.flags:
            layout = apart((idx_BT & FIRST).bool())
            idx_BT, target_BT = idx_BT & ID, torch.where((target_BT & LOSS).bool(), target_BT & ID, losses.IGNORE)
        elif self._apart:
            layout = documents(idx_BT, self.eos_id)
        x_BTC = self.gpt.hidden(idx_BT, *layout)
        head_VC = self.gpt.lm_head.weight
        kernels = self.gpt.with_kernels

        def loss(x_BTC: Tensor) -> Tensor:
            return losses.cross_entropy(x_BTC, head_VC, target_BT, self._chunk, kernels)

        lm = product(loss, x_BTC, self.gpt.in_bfloat16)
        # Right after the forward: activation checkpointing runs it again in backward.
        self.seen = routing(self.gpt) if self.training else []
        if not self.seen:
            nothing = torch.zeros_like(lm.detach())
            return lm, Parts(lm, nothing, nothing)
        auxiliary = self.balance(self.seen)
        weight_balance, weight_z = self._weights
        total = lm + weight_balance * auxiliary.balance + weight_z * auxiliary.z
        return total, Parts(lm, auxiliary.balance, auxiliary.z)

    def weight(self, tokens_BS: Tensor) -> Tensor:
        """What the mean over a batch counts for, beside those of other batches: its samples, or its trained tokens."""
        return ((tokens_BS[:, 1:] & LOSS) > 0).sum().float() if self.flags else torch.tensor(float(len(tokens_BS)))


class LossScale:
    """Dynamic loss scaling for float16 (Micikevicius et al. 2018), all on the device, so that no step waits for it.

    Halved by a gradient that is not finite, doubled after `_PATIENCE` good steps in a row. torch.amp.GradScaler does
    the same, but decides for each optimizer alone and shows its scale by a wait for the device.
    """

    _PATIENCE = 2000

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.tensor(65536.0, device=device)
        self._good = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, overflow: Tensor) -> None:
        self._good = torch.where(overflow, 0, self._good + 1)
        grow = self._good >= self._PATIENCE
        self.scale = torch.where(overflow, self.scale * 0.5, torch.where(grow, self.scale * 2, self.scale))
        self._good = torch.where(grow, 0, self._good)

    def state(self) -> dict[str, float]:
        return {"scale": float(self.scale), "good": int(self._good)}

    def load(self, state: dict[str, float]) -> None:
        self.scale.fill_(state["scale"])
        self._good.fill_(int(state["good"]))


@dataclass(frozen=True)
class StepMetrics:
    """What happened since the last log; means over its finite steps, and over all ranks where they differ."""

    steps: int
    lm: float
    balance: float
    z: float
    grad_norm: float
    non_finite_steps: int  # left out
    non_finite_in_row: int  # most of them in a row, also across logs
    first_non_finite: int  # number of the first step of the latest such row; -1: none
    layers: list[RoutingStats]


class Accumulator:
    """Adds up steps on the device; `read` is the one wait."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._row = torch.zeros(3, device=device)  # non-finite in a row now, most, first of the row
        self._row[2] = -1
        self._routing = RoutingTotals()
        self._clear()

    def _clear(self) -> None:
        self._sums = torch.zeros(6, device=self._device)  # lm, balance, z, norm, finite, left out
        self._routing.reset()
        self.steps = 0

    def add_routing(self, layers: list[Routing]) -> None:
        self._routing.add(layers)

    def add(self, number: int, parts_3: Tensor, norm: Tensor, non_finite: Tensor, left_out: Tensor) -> None:
        good = ~left_out
        row = torch.cat([parts_3, norm[None]])
        row = torch.cat([torch.where(good, row, 0.0), good[None].float(), left_out[None].float()])
        self._sums += row
        now, most, first = self._row.unbind()
        first = torch.where(non_finite & (now == 0), number, first)
        now = torch.where(non_finite, now + 1, 0.0)
        self._row = torch.stack([now, torch.maximum(most, now), first])
        self.steps += 1

    def non_finite_in_row(self) -> tuple[int, int]:
        """How many steps in a row are not finite now, and the first of them; waits for the device."""
        now, _, first = self._row.tolist()
        return int(now), int(first)

    def read(self, fabric: Fabric) -> StepMetrics:
        """Everything since the last call; every rank must call it."""
        sums = launch.reduced(fabric, self._sums, "mean")
        lm, balance, z, norm, good, left_out, _, most, first = torch.cat([sums, self._row]).tolist()
        lm, balance, z, norm = (v / good if good else float("nan") for v in (lm, balance, z, norm))
        layers = self._routing.read()
        metrics = StepMetrics(self.steps, lm, balance, z, norm, int(left_out), int(most), int(first), layers)
        self._row[1] = self._row[0]
        self._clear()
        return metrics


class Step:
    """Optimizer steps of one model."""

    def __init__(
        self,
        fabric: Fabric,
        module: Any,
        chosen: list[torch.optim.Optimizer],
        train: Train,
    ) -> None:
        self._fabric, self._module, self._optimizers, self._train = fabric, module, chosen, train
        self.objective: Objective = module.module  # beneath Fabric's wrapper and DDP's
        self._parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.scale = LossScale(fabric.device) if train.precision == "16-mixed" else None
        self.metrics = Accumulator(fabric.device)

    def __call__(self, number: int, batches: Iterator[Tensor]) -> None:
        """Step `number` (from 0) on the next micro batches; learning rates are set already."""
        fabric, count = self._fabric, accumulation(self._train)
        parts_3 = torch.zeros(3, device=fabric.device)
        micros = [next(batches).to(fabric.device, non_blocking=True) for _ in range(count)]
        for micro, (tokens_BS, share) in enumerate(zip(micros, self._shares(micros), strict=True)):
            with fabric.no_backward_sync(self._module, enabled=micro < count - 1):
                total, parts = self._module(tokens_BS)
                total = total / share
                fabric.backward(total if self.scale is None else total * self.scale.scale)
            self.metrics.add_routing(self.objective.seen)
            parts_3 += torch.stack([part.detach().float() for part in parts]) / share
        norm, overflow = self._finish_gradients()
        non_finite = overflow
        if self.scale is not None:  # a scale that was too high is no fault of the run
            non_finite = overflow & (self.scale.scale <= 1)
            self.scale.update(overflow)
        optimizers.step_unless(self._optimizers, overflow)
        self.objective.balance.finish(self.objective.gpt, self._train.bias_update_rate)
        self.metrics.add(number, parts_3, norm, non_finite, overflow)
        for parameter in self._parameters:
            parameter.grad = None

    def _shares(self, micros: list[Tensor]) -> list[Any]:
        """What the mean over each micro batch is divided by, so that the step's loss is the mean over all its targets.

        Ranks' gradients are averaged. Where only some tokens are trained, micro batches differ in how many.
        """
        if not self.objective.flags:
            return [len(micros)] * len(micros)
        weights = torch.stack([self.objective.weight(tokens_BS) for tokens_BS in micros])
        mean = launch.reduced(self._fabric, weights.sum(), "mean")
        return [mean / weight for weight in weights]

    @torch.no_grad()
    def _finish_gradients(self) -> tuple[Tensor, Tensor]:
        """Take the loss scale out of the gradients and clip them; their norm before, and whether it is not finite."""
        grads = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).float()
        factor = torch.ones_like(norm)
        if self.scale is not None:
            factor = 1 / self.scale.scale
            norm = norm * factor
        if self._train.optimizer.grad_clip:
            factor = factor * (self._train.optimizer.grad_clip / (norm + 1e-6)).clamp(max=1.0)
        if self.scale is not None or self._train.optimizer.grad_clip:
            torch._foreach_mul_(grads, factor)
        return norm, ~torch.isfinite(norm)
