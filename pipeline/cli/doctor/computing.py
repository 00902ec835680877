"""Checks that compute: what torch finds here, how fast it is, which kernels the project's model meets, the disk.

All are deep; torch is imported. They are done on the device that `auto` means, and leave nothing behind.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.model import LLaMAMoE
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import console, params
from pipeline.errors import UserError
from pipeline.model import build, size
from pipeline.model.device import resolve
from pipeline.model.layout import moe_layers
from pipeline.model.moe import MoE
from pipeline.train import hardware, launch, wrap

_DISK_BYTES = 2**27
_SLOW_DISK = 30e6  # bytes a second; a checkpoint of the default model then takes a second, one of 200 M parameters 80


def _device() -> str:
    device = resolve("auto", "device").type
    if device == "cuda":
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        memory = torch.cuda.get_device_properties(0).total_memory
        return f"{torch.cuda.device_count()} x {', '.join(sorted(names))}, {console.size(memory)}"
    if device == "mps":
        return "Apple GPU (mps)"
    if torch.version.cuda:
        return f"CPU, {torch.get_num_threads()} threads; this build of torch is for CUDA {torch.version.cuda}"
    return f"CPU, {torch.get_num_threads()} threads"


def _precision() -> str:
    """The speed in each type of number, and whether the device does what train.precision asks for."""
    device = resolve("auto", "device")
    dtypes = {"32-true": torch.float32}
    if _has_bfloat16(device.type):
        dtypes["bf16-mixed, bf16-true"] = torch.bfloat16
    if device.type == "cuda":
        dtypes["16-mixed"] = torch.float16
    speeds = [f"{names} {hardware.gemm_flops(device, dtype) / 1e12:.2f}" for names, dtype in dtypes.items()]
    if Path("params.yaml").is_file():
        hardware.device_of(params.load().train)
    return f"TFLOP/s by train.precision, measured on {device.type}: {'; '.join(speeds)}"


def _has_bfloat16(device: str) -> bool:
    return device == "cpu" or (device == "cuda" and torch.cuda.is_bf16_supported(False))


class _Seen(TorchDispatchMode):
    """The names of the operators that really run, after torch has chosen among its kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _kernels() -> str:
    """Which kernels the model of params.yaml meets: its first layers up to one with experts, in its precision."""
    if not Path("params.yaml").is_file():
        raise UserWarning(f"no params.yaml in {Path.cwd()}; run this in the project's folder")
    parameters = params.load()
    train = parameters.train.model_copy(update={"devices": 1, "num_nodes": 1})
    device = hardware.device_of(train)
    train = hardware.settled(train, device)
    n_layer = (moe_layers(parameters.model) or [0])[0] + 1
    dtype = torch.bfloat16 if train.precision == "bf16-true" else None
    vocab_size = 64
    small = parameters.model.model_copy(update={"n_layer": n_layer, "vocab_size": None})
    gpt = build.build(small, vocab_size, device=device, dtype=dtype)
    idx_BT = torch.arange(train.block_size, device=device)[None] % vocab_size
    position_BT, mask = build.documents(idx_BT, 0) if train.document_mask else (None, None)
    with launch.fabric_for(train, device).autocast(), _Seen() as seen:
        gpt.hidden(idx_BT, position_BT, mask)
    how = {name.removeprefix("_scaled_dot_product_") for name in seen.names if name.startswith("_scaled_dot_product_")}
    if "document_attention" in seen.names:
        how.add("flash attention for cpu, a document at a time")
    attention = ", ".join(sorted(how)).replace("_", " ") or "the plain formula, which holds all scores in memory"
    if not moe_layers(size.resolved(small, vocab_size)):
        experts = "none"
    elif "experts" in seen.names:
        experts = "a loop over experts, for CPUs"
    else:
        experts = "grouped GEMM" if "_grouped_mm" in seen.names else "batched GEMM of blocks"
    return f"attention: {attention}; experts: {experts} ({train.precision} on {device})"


def _attention() -> str:
    """Attention on the device against the formula, and whether the flash kernel computes it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    q, k, v = torch.randn(3, 1, 2, 64, 32, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    later = torch.ones(64, 64, device=device).triu(1).bool()
    scores = (q.double() @ k.double().mT / 32**0.5).masked_fill(later, -torch.inf)
    expected = scores.softmax(-1) @ v.double()
    kernel = "default kernel"
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            found = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        kernel = "flash attention"
    except RuntimeError:
        found = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    error = (found.double() - expected).abs().max().item()
    if error > (1e-5 if dtype == torch.float32 else 3e-2):
        raise UserError(f"{kernel} is off by {error:.1e}; install another build of torch")
    return f"{kernel} on {device}, right to {error:.0e}"


def _expert_layer() -> str:
    """Our layer on the device gives what litgpt's gives on the CPU in float32, with the same weights and input."""
    device = resolve("auto", "device").type
    said = []
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        if dtype == torch.bfloat16 and not _has_bfloat16(device):
            continue
        layer, config = _small_layer()
        layer.to(dtype)
        reference = LLaMAMoE(config)
        reference.load_state_dict({name: weight.float() for name, weight in layer.state_dict().items()})
        x_BTC = torch.randn(2, 16, config.n_embd, generator=torch.Generator().manual_seed(0)).to(dtype)
        with torch.no_grad():
            expected = reference(x_BTC.float())
            error = ((layer.to(device)(x_BTC.to(device)).cpu().float() - expected).norm() / expected.norm()).item()
        name = str(dtype).removeprefix("torch.")
        if not error <= allowed:
            raise UserError(f"in {name} on {device} it differs from litgpt's by {error:.1e}; install another torch")
        said.append(f"{error:.0e} in {name}")
    return f"on {device} it equals litgpt's to {', '.join(said)}"


def _compile() -> str:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if missing := wrap.lacking(device):
        raise UserWarning(f"{missing}; train.compile=auto goes without")
    layer, config = _small_layer()
    layer = layer.to(device)
    x_BTC = torch.randn(2, 16, config.n_embd, generator=torch.Generator().manual_seed(0)).to(device)
    error = (torch.compile(layer)(x_BTC) - layer(x_BTC)).abs().max().item()
    if error > 1e-4:
        raise UserError(f"the compiled layer differs by {error:.1e}: train with train.compile=off")
    return "compiles the expert layer, same output"


def _small_layer() -> tuple[MoE, Config]:
    torch.manual_seed(0)
    experts = {"n_expert": 4, "n_expert_per_token": 2, "moe_intermediate_size": 32}
    config = Config(
        n_embd=64, n_head=4, n_layer=1, bias=False, mlp_class_name="LLaMAMoE", intermediate_size=32, **experts
    )
    return MoE(config), config


def _disk_speed() -> str:
    """A file is written through to the disk, dropped from memory where the system lets us, and read."""
    block = os.urandom(2**24)  # of chance, as some file systems compress
    with tempfile.TemporaryFile(dir=Path()) as file:
        begun = time.perf_counter()
        for _ in range(_DISK_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        writing = _DISK_BYTES / (time.perf_counter() - begun)
        words = f"writes {console.size(writing)}/s"
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            begun = time.perf_counter()
            while file.read(len(block)):
                pass
            words += f", reads {console.size(_DISK_BYTES / (time.perf_counter() - begun))}/s"
    if writing < _SLOW_DISK:
        raise UserWarning(f"{words}: slow for data and checkpoints; put the project on a local disk")
    return words


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("torch's device", _device),
    ("precision", _precision),
    ("kernels", _kernels),
    ("attention", _attention),
    ("expert layer", _expert_layer),
    ("torch.compile", _compile),
    ("disk speed", _disk_speed),
)
