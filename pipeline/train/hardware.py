"""What the machine could do: the peak arithmetic that utilisation is measured against."""

import time

import torch

# Dense TFLOP/s of 16-bit tensor cores with float32 accumulation, from the makers' datasheets (without sparsity).
_DATASHEET = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "A10G": 70,
    "A10": 125,
    "L40S": 362,
    "L4": 121,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 4080": 97.5,
    "RTX 3090": 71,
    "RTX 3060": 25.6,
    "V100": 125,
    "T4": 65,
}


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """FLOP/s that one device can reach in this precision, and how that is known: datasheet or a measured product."""
    if device.type == "cuda" and precision != "32-true":
        known = _known(torch.cuda.get_device_name(device))
        if known:
            return _DATASHEET[known] * 1e12, f"datasheet of {known}"
    dtype = {"32-true": torch.float32, "16-mixed": torch.float16}.get(precision, torch.bfloat16)
    return gemm_flops(device, dtype), f"measured product of matrices in {str(dtype).removeprefix('torch.')}"


def _known(name: str) -> str | None:
    """The entry of the table for a card's name, by whole words: an L40 is no L4, a T400 no T4, a 3080 Ti no 3080."""
    words = name.replace("-", " ").split()
    for known in _DATASHEET:
        wanted = known.split()
        at = [i for i in range(len(words)) if words[i : i + len(wanted)] == wanted]
        if at and words[at[0] + len(wanted) : at[0] + len(wanted) + 1] not in (["Ti"], ["SUPER"], ["D"], ["Laptop"]):
            return known
    return None


def gemm_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOP/s of the fastest of the square products that fit in `seconds`."""
    n = 1024 if device.type == "cpu" else 4096
    a = torch.ones(n, n, device=device, dtype=dtype)
    b = torch.ones(n, n, device=device, dtype=dtype)
    out = a @ b
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < seconds:
        wait(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
