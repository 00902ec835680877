"""The devices of a machine: which one params mean, in what precision it computes, and how fast at most.

device = device_of(train)
train = settled(train, device)
peak_flops(torch.device(device), train.precision)   # what utilization is measured against

Imports no torch where it can do without: planning is quick.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError
from pipeline.model.device import kind
from pipeline.train.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    import torch

    from pipeline.params import Train


def device_of(train: "Train") -> str:
    """cpu, cuda or mps: `auto` resolved on this machine. Raises UserError for what this machine cannot do."""
    device = kind(train.device, "train.device")
    here = f"train.device = {train.device!r} is {device} here"
    if device == "cuda" and train.devices > (here_are := _torch().cuda.device_count()):
        raise UserError(f"train.devices = {train.devices}; allowed: 1 to {here_are}, the GPUs here")
    if device == "mps" and train.devices > 1:
        raise UserError(f"train.devices = {train.devices}; {here}, which is one device")
    if device == "cpu" and train.precision == "16-mixed":
        raise UserError(f"train.precision = '16-mixed' needs a GPU; {here}: take 32-true or bf16-mixed")
    if device == "mps" and train.precision not in ("auto", "32-true"):
        raise UserError(f"train.precision = {train.precision!r}; {here}, allowed there: 32-true")
    if device == "cuda" and train.precision.startswith("bf16") and not _torch().cuda.is_bf16_supported(False):
        raise UserError(f"train.precision = {train.precision!r}, but this GPU has no bfloat16; take 16-mixed")
    if refusal := OPTIMIZERS[train.optimizer.name].refusal(train.optimizer.name, device, train.strategy):
        raise UserError(f"train.{refusal} ({here})")
    return device


def settled(train: "Train", device: str) -> "Train":
    """For this kind of device, with `precision: auto` resolved for a GPU.

    On a CPU it stays, and pipeline/model/products.py resolves it.
    """
    train = train.model_copy(update={"device": device})
    if train.precision != "auto" or device == "cpu":
        return train
    precision = "32-true"
    if device == "cuda":
        elsewhere = kind("auto", "train.device") != "cuda"
        bfloat16 = elsewhere or _torch().cuda.is_bf16_supported(False)
        precision = "bf16-mixed" if bfloat16 else "32-true" if train.strategy == "fsdp" else "16-mixed"
    return train.model_copy(update={"precision": precision})


def _torch() -> Any:
    import torch

    return torch


# Dense TFLOP/s of 16-bit tensor cores with float32 accumulation, from the makers' datasheets (without sparsity).
# fmt: off
DATASHEET: dict[str, float] = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "A10G": 70, "A10": 125,
    "L40S": 362, "L4": 121, "RTX 5090": 209.5, "RTX 4090": 165.2, "RTX 4080": 97.5, "RTX 3090": 71, "RTX 3060": 25.6,
    "V100": 125, "T4": 65,
}
# fmt: on


def peak_flops(device: "torch.device", precision: str) -> tuple[float, str]:
    """FLOP/s that one device can reach in this precision, and how that is known: datasheet or a measured matmul."""
    import torch

    if device.type == "cuda" and precision != "32-true":
        known = known_card(torch.cuda.get_device_name(device))
        if known:
            return DATASHEET[known] * 1e12, f"datasheet of {known}"
    dtype = {"32-true": torch.float32, "auto": torch.float32, "16-mixed": torch.float16}.get(precision, torch.bfloat16)
    return gemm_flops(device, dtype), f"measured matmul in {str(dtype).removeprefix('torch.')}"


def known_card(name: str) -> str | None:
    """The entry of the table for a card's name, by whole words: an L40 is no L4, a T400 no T4, a 3080 Ti no 3080."""
    words = name.lower().replace("-", " ").split()
    for known in DATASHEET:
        wanted = known.lower().split()
        at = [i for i in range(len(words)) if words[i : i + len(wanted)] == wanted]
        if at and words[at[0] + len(wanted) : at[0] + len(wanted) + 1] not in (["ti"], ["super"], ["d"], ["laptop"]):
            return known
    return None


def gemm_flops(device: "torch.device", dtype: "torch.dtype", seconds: float = 0.2) -> float:
    """FLOP/s of the fastest of torch's square matmuls that fit in `seconds`."""
    import torch

    n = 1024 if device.type == "cpu" else 4096
    a = torch.ones(n, n, device=device, dtype=dtype)
    b = torch.ones(n, n, device=device, dtype=dtype)
    out = a @ b

    def multiply() -> None:
        torch.mm(a, b, out=out)
        wait(device)

    wait(device)
    return 2 * n**3 / _fastest(multiply, seconds)


def cpu_flops(seconds: float = 0.2) -> float:
    """FLOP/s of the processor in float32, as numpy's matmuls reach them: for plans, without torch."""
    n = 1024
    a, b, out = (np.ones((n, n), dtype=np.float32) for _ in range(3))
    return 2 * n**3 / _fastest(lambda: np.matmul(a, b, out=out), seconds)


def _fastest(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of as many runs as fit."""
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def wait(device: "torch.device") -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        _torch().cuda.synchronize(device)
    elif device.type == "mps":
        _torch().mps.synchronize()
