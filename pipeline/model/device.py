"""Which device a name means on this machine: `auto` is the fastest one here; a device that is not here is refused.

resolve("auto", "evaluate.device")  # device(type='cuda')
kind("auto", "train.device")        # 'cpu', at once where there is nothing else
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

# What the drivers of Linux make for a GPU: NVIDIA's, those of its Jetsons, of Windows' subsystem, and AMD's.
_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")


def available() -> list[str]:
    """The kinds of device that torch finds here, the fastest first; the last is always cpu."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    return [*(["cuda"] if cuda else []), *(["mps"] if mps else []), "cpu"]


def kind(name: str, option: str) -> str:
    """The kind of device that `name` means, as `resolve` finds it; torch is not loaded where it can only be a CPU."""
    without = sys.platform == "linux" and not any(Path(driver).exists() for driver in _DRIVERS)
    return "cpu" if name == "cpu" or (name == "auto" and without) else resolve(name, option).type


def resolve(name: str, option: str) -> "torch.device":
    """The device called `name`: auto, cpu, mps, cuda or cuda:N.

    Raises UserError, in which `option` says where the name comes from, for a device that is not here.
    """
    import torch

    here = available()
    try:
        device = torch.device(here[0] if name == "auto" else name)
    except RuntimeError:  # no device of torch is called that
        device = None
    beyond = device is not None and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if device is None or device.type not in here or beyond:
        raise UserError(f"{option}: torch finds no {name!r} on this machine; allowed: auto, {', '.join(here)}")
    return device
