"""Which device a name means on this machine: `auto` is the fastest one here; a device that is not here is refused.

resolve("auto", "evaluate.device")  # device(type='cuda')
"""

import torch

from pipeline.errors import UserError


def available() -> list[str]:
    """The kinds of device that torch finds here, the fastest first; the last is always cpu."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    return [*(["cuda"] if cuda else []), *(["mps"] if mps else []), "cpu"]


def resolve(name: str, option: str) -> torch.device:
    """The device called `name`: auto, cpu, mps, cuda or cuda:N.

    Raises UserError, in which `option` says where the name comes from, for a device that is not here.
    """
    here = available()
    try:
        device = torch.device(here[0] if name == "auto" else name)
    except RuntimeError:  # no device of torch is called that
        device = None
    beyond = device is not None and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if device is None or device.type not in here or beyond:
        raise UserError(f"{option}: torch finds no {name!r} on this machine; allowed: auto, {', '.join(here)}")
    return device
