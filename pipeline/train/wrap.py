"""What is put around the model's blocks: recomputation (activation checkpointing), compiling, sharding.

On a GPU `compile: auto` measures the first steps. On a CPU, where a run that was killed and resumed must end with the
bytes of one that was not, it counts the work of the whole run: the clock would decide otherwise, or later, the second
time.
"""

import os
import shutil
import sys
import time
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from litgpt.model import Block
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline import console
from pipeline.errors import UserError
from pipeline.train import hardware, launch


def blocks(model: nn.Module) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


def recompute_blocks(model: nn.Module) -> None:
    """Let every block keep only its input, and compute the rest again in backward (Chen et al. 2016).

    Weights and names stay as they are.
    """
    draws = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())  # an adapter's
    for block in blocks(model):
        block.forward = _Recomputed(block.forward, draws)  # type: ignore[method-assign]


class _Recomputed:
    def __init__(self, forward: Any, draws: bool) -> None:
        self._forward, self._draws = forward, draws

    def __call__(self, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args)
        return checkpoint(self._forward, *args, use_reentrant=False, preserve_rng_state=self._draws)


def shard(module: nn.Module, mesh: Any) -> nn.Module:
    """FSDP2: each block gathers its weights when it runs; the rest is gathered at the root."""
    from torch.distributed.fsdp import fully_shard

    for part in [*blocks(module), module]:
        fully_shard(part, mesh=mesh["data_parallel"])  # in place
    return module


class _Worth(NamedTuple):
    """What compiling the blocks costs and saves where it was tried."""

    seconds: float  # to compile
    share_saved: float  # of a step
    least: float  # seconds that it must save


_CUDA = _Worth(60.0, 0.2, 60.0)
_CPU = _Worth(35.0, 0.05, 120.0)  # 5 to 10 % were saved; counted, not measured, so it must be worth it by far
_CPU_FLOPS = 90e9  # that a training step reaches on two cores, where it was tried
_CPU_FLOPS_IN_BFLOAT16 = 300e9  # with its matmuls in bfloat16 and compiled kernels
_WARM_UP, _MEASURED = 3, 5  # steps


class Compiling:
    """Compiles block by block: blocks are alike, so one compilation serves all of a kind. Ranks do as rank 0 decides.

    Raises UserError where `choice` is on and nothing here can compile.
    """

    def __init__(
        self,
        model: nn.Module,
        choice: str,
        fabric: Fabric,
        run_flops: float,
        before: bool | None,
        in_bfloat16: bool = False,
    ) -> None:
        """`run_flops`: of the whole run on one device. `before`: whether the run that is resumed was compiled, or None.
        `in_bfloat16`: a CPU's matmuls, with compiled kernels between them.

        A resumed run stays as it was, since compiling moves last digits; unless `choice` is against it.
        """
        self._model, self._fabric = model, fabric
        self.done = self._undecided = False
        self._times: list[float] = []
        kind = fabric.device.type
        missing = launch.from_rank_zero(fabric, lambda: lacking(kind))
        if choice == "on" and missing:
            raise UserError(f"train.compile = 'on', but {missing}; take auto or off")
        if before and (choice == "off" or missing):
            because = missing or "train.compile = 'off'"
            self._say(f"the run that goes on was compiled, now it is not ({because}): last digits may differ", True)
        elif choice == "on" or before:
            self._compile()
        elif choice == "off":
            return
        elif missing:
            self._say(f"not compiled: {missing}")
        elif kind == "cpu" and before is None:
            seconds = run_flops / (_CPU_FLOPS_IN_BFLOAT16 if in_bfloat16 else _CPU_FLOPS)
            words = f"the run's work takes about {console.duration(seconds)} on two cores; compiling would save about "
            self._decide(seconds * _CPU.share_saved, _CPU, words)
        elif kind == "mps":
            self._say("not compiled: not yet measured on mps (train.compile: on compiles all the same)")
        self._undecided = choice == "auto" and kind == "cuda" and not (self.done or before or missing)

    def after_step(self, steps_left: int) -> None:
        """Decide once enough steps were measured; a wait for the device in some of the first steps only."""
        if not self._undecided:
            return
        hardware.wait(self._fabric.device)
        self._times.append(time.perf_counter())
        if len(self._times) <= _WARM_UP + _MEASURED:
            return
        self._undecided = False
        step = self._fabric.broadcast((self._times[-1] - self._times[_WARM_UP]) / _MEASURED)
        words = f"{steps_left:,} steps of {step:.3f} s are left; compiling would save about "
        self._decide(steps_left * step * _CUDA.share_saved, _CUDA, words)

    def _decide(self, saved: float, worth: _Worth, words: str) -> None:
        words += f"{console.duration(saved)} and cost about {console.duration(worth.seconds)}"
        pays = saved > worth.least
        self._say(f"{'compiling' if pays else 'not compiled'}: {words}")
        if pays:
            self._compile()

    def _say(self, words: str, warning: bool = False) -> None:
        if self._fabric.is_global_zero:
            (console.warn if warning else console.say)(f"train: {words}")

    def _compile(self) -> None:
        for block in blocks(self._model):
            block.compile()
        self.done = True


def lacking(kind: str) -> str | None:
    """What torch.compile would need on this kind of device and does not find, in words."""
    if kind == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "torch.compile needs Triton, which is not installed or not for this GPU"
    if kind == "cpu":  # what torch looks for, see torch/_inductor/config.py: cpp.cxx
        compiler = os.environ.get("CXX") or {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
        return None if shutil.which(compiler) else f"torch.compile needs a C++ compiler: {compiler} is not on the path"
    return None
