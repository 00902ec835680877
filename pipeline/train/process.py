"""This process among those of its run: its rank, the signals that it gets, and when its session of training ends.

Imports no torch, so that the stage knows them before it loads it.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from pipeline import console

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_WATCHED_SECONDS = 0.5  # that other processes are watched for
_SECONDS_BETWEEN_CHECKS = 1.0  # of several ranks: to agree is a wait for the slowest of them


def rank() -> int:
    """This process's rank as its environment gives it, before anything was launched; 0 is the one that reports.

    torchrun sets RANK. Otherwise the one that reports is the first of its node (LOCAL_RANK, which Fabric gives to those
    it starts) on the first node (NODE_RANK, which a plain start on several nodes sets) or of Slurm's job; exact but on
    the later nodes of a plain start, where it only tells that this is another.
    """
    if os.environ.get("RANK", "").isdigit():
        return int(os.environ["RANK"])
    given = (os.environ.get(name, "") for name in ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))
    return max([int(number) for number in given if number.isdigit()], default=0)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step: what it gives back costs a page fault for every 4 KB taken anew.

    On a CPU that was a tenth of a step. Memory at the peak is what it was. MALLOC_… of the environment has precedence.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 32 * 2**20)  # the most that it takes


def leave_busy_cores() -> None:
    """Where other processes keep cores busy, compute with as many threads as cores are left, and say so.

    Each product ends when the last of its threads does, which waits for its turn on a core that is taken: beside two
    busy processes on two cores, two threads were 3.5 to 10 times as slow as alone, one 2.2 times. OMP_NUM_THREADS has
    precedence. The number is kept in checkpoints: sums of other threads have other last digits.
    """
    import psutil
    import torch

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    if threads == 1 or "OMP_NUM_THREADS" in os.environ:
        return
    busy = psutil.cpu_percent(interval=_WATCHED_SECONDS) / 100 * cores
    free = max(1, round(cores - busy))
    if threads > free:
        torch.set_num_threads(free)
        console.warn(
            f"other processes keep {busy:.1f} of {cores} cores busy, so that {free} of {threads} threads compute: "
            f"faster while they do; OMP_NUM_THREADS={threads} has all compute"
        )


class Interrupted(Exception):  # noqa: N818 - no error
    """Training was asked to stop and has; `exit_code` is what shells expect (128 + the signal's number)."""

    def __init__(self, number: int, done: int, total: int, folder: Path) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {done} of {total}; a checkpoint is in {folder}: "
            "the same command goes on from there"
        )
        self.exit_code = 128 + number


class Interruption:
    """While entered, the first SIGINT or SIGTERM is noted in `number`; a second one acts as it always does."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            for each in (signal.SIGINT, signal.SIGTERM):
                self._before[each] = signal.signal(each, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()


class Stopping:
    """When a session ends before its run does: a signal or train.max_minutes, seen alike by all ranks.

    Checked after each step; several ranks agree about once a second, so after each step where steps take longer.
    """

    def __init__(self, fabric: "Fabric", interruption: Interruption, max_minutes: float | None) -> None:
        """The minutes begin now: they are a session's, so that the same command goes on for as long again."""
        self._fabric, self._interruption = fabric, interruption
        self._seconds = float("inf") if max_minutes is None else 60 * max_minutes
        self._begun = self._checked = time.perf_counter()
        self._steps, self._every = 0, 1  # since the last check, and until the next

    def after_step(self) -> tuple[int, bool]:
        """The number of the signal that came (0: none), and whether the time is over: the same on every rank.

        Every rank must call it after the same steps.
        """
        self._steps += 1
        if self._steps < self._every:
            return 0, False
        now = time.perf_counter()
        seen = [self._interruption.number, now - self._begun >= self._seconds, (now - self._checked) / self._steps]
        if self._fabric.world_size > 1:
            import torch

            here = torch.tensor([float(value) for value in seen], device=self._fabric.device)
            largest: Any = self._fabric.all_reduce(here, reduce_op="max")
            seen = largest.tolist()
            self._every = max(1, int(_SECONDS_BETWEEN_CHECKS / max(seen[2], 1e-6)))
        self._checked, self._steps = now, 0
        return int(seen[0]), bool(seen[1])
