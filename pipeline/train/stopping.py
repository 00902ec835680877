"""When a session of training ends before its run does: a signal or train.max_minutes, seen alike by all ranks."""

import time
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric

from pipeline.train.interruption import Interruption

_SECONDS_BETWEEN_LOOKS = 1.0  # of several ranks: to agree is a wait for the slowest of them


@dataclass(frozen=True)
class Stop:
    signal: int  # its number; 0: none came
    time_is_over: bool


class Stopping:
    """Looks after each step; several ranks agree about once a second, so after each step where steps take longer."""

    def __init__(self, fabric: Fabric, interruption: Interruption, max_minutes: float | None) -> None:
        """The minutes begin now: they are a session's, so that the same command goes on for as long again."""
        self._fabric, self._interruption = fabric, interruption
        self._seconds = float("inf") if max_minutes is None else 60 * max_minutes
        self._begun = self._looked = time.perf_counter()
        self._steps, self._every = 0, 1  # since the last look, and until the next

    def after_step(self) -> Stop:
        """The same on every rank; every rank must call it after the same steps."""
        self._steps += 1
        if self._steps < self._every:
            return Stop(0, False)
        now = time.perf_counter()
        seen = [self._interruption.number, now - self._begun >= self._seconds, (now - self._looked) / self._steps]
        if self._fabric.world_size > 1:
            here = torch.tensor([float(value) for value in seen], device=self._fabric.device)
            largest = self._fabric.all_reduce(here, reduce_op="max")
            assert isinstance(largest, torch.Tensor)
            seen = largest.tolist()
            self._every = max(1, int(_SECONDS_BETWEEN_LOOKS / max(seen[2], 1e-6)))
        self._looked, self._steps = now, 0
        return Stop(int(seen[0]), bool(seen[1]))
