"""Whether and when the model is compiled: at once, never, or where steps say that it pays back.

On a GPU `auto` measures the first steps. On a CPU, where a run that was killed and resumed must end with the bytes of
one that was not, it counts the work of the whole run: the clock would decide otherwise, or later, the second time.
"""

import os
import shutil
import sys
import time
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from litgpt.model import Block
from torch import nn

from pipeline import console
from pipeline.errors import UserError
from pipeline.train import hardware, launch


@dataclass(frozen=True)
class _Worth:
    """What compiling the blocks costs and saves where it was tried."""

    seconds: float  # to compile
    share_saved: float  # of a step
    least: float  # seconds that it must save


_CUDA = _Worth(60.0, 0.2, 60.0)
_CPU = _Worth(35.0, 0.05, 120.0)  # 5 to 10 % were saved; counted, not measured, so it must be worth it by far
_CPU_FLOPS = 50e9  # that a training step reaches on two cores, where it was tried
_WARM_UP, _MEASURED = 3, 5  # steps


class Compiling:
    """Compiles block by block: blocks are alike, so one compilation serves all of a kind. Ranks do as rank 0 decides.

    Raises UserError where `choice` is on and nothing here can compile.
    """

    def __init__(self, model: nn.Module, choice: str, fabric: Fabric, run_flops: float, before: bool | None) -> None:
        """`run_flops`: of the whole run on one device. `before`: whether the run that is resumed was compiled, or None.

        A resumed run stays as it was, since compiling moves last digits; unless `choice` is against it.
        """
        self._model, self._fabric, self._device = model, fabric, fabric.device
        self.done = False
        self._times: list[float] = []
        self._undecided = False
        missing = launch.from_rank_zero(fabric, lambda: _missing(self._device))
        if choice == "on" and missing:
            raise UserError(f"train.compile = 'on', but {missing}; take auto or off")
        if before and (choice == "off" or missing):
            because = missing or "train.compile = 'off'"
            self._warn(f"the run that goes on was compiled, now it is not ({because}): last digits may differ")
        elif choice == "on" or before:
            self._compile()
        elif choice == "auto" and missing:
            self._say(f"not compiled: {missing}")
        elif choice == "auto" and self._device.type == "cpu" and before is None:
            seconds = run_flops / _CPU_FLOPS
            words = f"the run's work takes about {console.duration(seconds)} on two cores; compiling would save about "
            self._decide(seconds * _CPU.share_saved, _CPU, words)
        elif choice == "auto" and self._device.type == "mps":
            self._say(
                "not compiled: nobody measured whether that pays on mps (train.compile: on compiles all the same)"
            )
        elif choice == "auto":
            self._undecided = self._device.type == "cuda"

    def after_step(self, steps_left: int) -> None:
        """Decide once enough steps were measured; a wait for the device in some of the first steps only."""
        if not self._undecided:
            return
        hardware.wait(self._device)
        self._times.append(time.perf_counter())
        if len(self._times) <= _WARM_UP + _MEASURED:
            return
        self._undecided = False
        step = self._fabric.broadcast((self._times[-1] - self._times[_WARM_UP]) / _MEASURED)
        words = f"{steps_left:,} steps of {step:.3f} s are left; compiling would save about "
        self._decide(steps_left * step * _CUDA.share_saved, _CUDA, words)

    def _decide(self, saved: float, worth: _Worth, words: str) -> None:
        words += f"{console.duration(saved)} and cost about {console.duration(worth.seconds)}"
        if saved > worth.least:
            self._say(f"compiling: {words}")
            self._compile()
        else:
            self._say(f"not compiled: {words}")

    def _say(self, words: str) -> None:
        if self._fabric.is_global_zero:
            console.say(f"train: {words}")

    def _warn(self, words: str) -> None:
        if self._fabric.is_global_zero:
            console.warn(f"train: {words}")

    def _compile(self) -> None:
        for block in [module for module in self._model.modules() if isinstance(module, Block)]:
            block.compile()
        self.done = True


def _missing(device: torch.device) -> str | None:
    """What torch.compile would need here and does not find, in words."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "torch.compile needs Triton, which is not installed or not for this GPU"
    if device.type == "cpu":  # what torch looks for, see torch/_inductor/config.py: cpp.cxx
        compiler = os.environ.get("CXX") or {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
        return None if shutil.which(compiler) else f"torch.compile needs a C++ compiler: {compiler} is not on the path"
    return None
