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

# What drivers of Linux make for a GPU: NVIDIA's, those of its Jetsons, of Windows' subsystem, and AMD's.
_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
_MAKERS = ("0x10de", "0x1002")  # NVIDIA and AMD on the PCI bus, whose driver may not be awake yet


def available() -> list[str]:
    """The kinds of device that torch finds here, the fastest first; the last is always cpu."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    return [*(["cuda"] if cuda else []), *(["mps"] if mps else []), "cpu"]


def kind(name: str, option: str) -> str:
    """The kind of device that `name` means, as `resolve` finds it; torch is not loaded where it can only be a CPU."""
    if name == "cpu" or (name == "auto" and _without_gpu()):
        return "cpu"
    if name == "cuda" and _without_gpu():
        raise _absent(name, option, ["cpu"])
    return resolve(name, option).type


def _without_gpu() -> bool:
    """Whether this is sure. A process that has loaded torch asks torch."""
    if sys.platform != "linux" or "torch" in sys.modules or any(Path(driver).exists() for driver in _DRIVERS):
        return False
    return not any(vendor.read_text().strip() in _MAKERS for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"))


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
        raise _absent(name, option, here)
    return device


def _absent(name: str, option: str, here: list[str]) -> UserError:
    return UserError(f"{option}: torch finds no {name!r} on this machine; allowed: auto, {', '.join(here)}")
