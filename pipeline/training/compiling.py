"""Whether and when the model is compiled: at once, never, or where measured steps say that it pays back."""

import time

import torch
from litgpt.model import Block
from torch import nn

from pipeline import console

# What compiling the blocks costs and saves where it was tried; `auto` weighs them against the steps that are left.
_SECONDS_TO_COMPILE = 60.0
_SHARE_SAVED = 0.2
_WARM_UP, _MEASURED = 3, 5  # steps


class Compiling:
    """Compiles block by block: blocks are alike, so one compilation serves all of a kind."""

    def __init__(self, model: nn.Module, choice: str, device: torch.device, already: bool) -> None:
        """`already`: the run that is resumed was compiled; then this one is, since compiling moves last digits."""
        self._model, self._device = model, device
        self.done = False
        self._times: list[float] = []
        self._undecided = False
        if choice == "on" or already:
            self._compile()
        elif choice == "auto" and device.type == "cuda":
            self._undecided = True
        elif choice == "auto":
            console.say(
                f"train: not compiled: on {device.type} the products take nearly all of the time, and those compiling "
                "leaves as they are (train.compile: on compiles all the same)"
            )

    def after_step(self, steps_left: int) -> None:
        """Decide once enough steps were measured; a wait for the device in some of the first steps only."""
        if not self._undecided:
            return
        torch.cuda.synchronize(self._device)
        self._times.append(time.perf_counter())
        if len(self._times) <= _WARM_UP + _MEASURED:
            return
        self._undecided = False
        step = (self._times[-1] - self._times[_WARM_UP]) / _MEASURED
        saved = steps_left * step * _SHARE_SAVED
        weighed = (
            f"{steps_left:,} steps of {step:.3f} s are left; compiling would save about {console.duration(saved)} "
            f"and cost about {console.duration(_SECONDS_TO_COMPILE)}"
        )
        if saved > _SECONDS_TO_COMPILE:
            console.say(f"train: compiling: {weighed}")
            self._compile()
        else:
            console.say(f"train: not compiled: {weighed}")

    def _compile(self) -> None:
        for block in [module for module in self._model.modules() if isinstance(module, Block)]:
            block.compile()
        self.done = True
