"""`moe doctor`: does this machine have what the pipeline needs? Each check really does what it speaks of.

for state, what, words in examine(deep=False): print(state, what, words)      # each as soon as it is known
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline import console
from pipeline.errors import UserError

if TYPE_CHECKING:
    from litgpt.config import Config

    from pipeline.model.moe import MoE

_PACKAGES = ("torch", "lightning", "litgpt", "litdata", "transformers", "tokenizers", "daft", "dvc", "wandb")
_LEAST_FREE = 2e9  # bytes; the default run needs 1 GB, its cache the same again


def examine(deep: bool) -> Iterator[tuple[Literal["ok", "warn", "fail"], str, str]]:
    """Each check's state, name and words; `deep` also computes with the model's parts, which takes half a minute.

    A check returns what is well, raises UserWarning for what one can do without, and anything else where it fails.
    """
    for what, check in [*_LIGHT, *(_DEEP if deep else ())]:
        try:
            yield "ok", what, check()
        except UserWarning as warning:
            yield "warn", what, str(warning)
        except UserError as error:
            yield "fail", what, str(error)
        except Exception as error:  # a check that fails is what we came for, whatever it raises
            yield "fail", what, " ".join([f"{type(error).__name__}:", *str(error).strip().splitlines()[-1:]])


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise UserError(f"Python {platform.python_version()}; 3.11 to 3.13 are supported: uv python install 3.13")
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _packages() -> str:
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: uv sync")
    return ", ".join(found)


def _disk() -> str:
    free = shutil.disk_usage(Path()).free
    if free < _LEAST_FREE:
        raise UserError(f"{console.size(free)} free; the default run and its cache need {console.size(_LEAST_FREE)}")
    return f"{console.size(free)} free"


def _git() -> str:
    if shutil.which("git") is None:
        raise UserWarning(
            "not installed; `dvc repro` works without (dvc config core.no_scm true), `dvc exp run` does not"
        )
    inside = subprocess.run(["git", "rev-parse", "--is-inside-work-tree"], capture_output=True, check=False)
    if inside.returncode:
        raise UserWarning(
            f"{Path.cwd()} is no repository; for `dvc exp run`: git init; for `dvc repro` alone: dvc config "
            "core.no_scm true"
        )
    return "a repository"


def _project() -> str:
    from pipeline import params

    if not Path("dvc.yaml").is_file():
        raise UserWarning(f"no dvc.yaml in {Path.cwd()}; run this in the project's folder to check the project too")
    params.load()
    return "params.yaml is valid"


def _configs() -> str:
    from pipeline.cli.compose import differences

    if not Path("configs/config.yaml").is_file():
        raise UserWarning("no configs/config.yaml here; `dvc exp run -S` needs it")
    if differing := differences():
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserWarning(
            f"params.yaml is not what configs/ compose: {'; '.join(differing[:3])}{more} (moe compose --check)"
        )
    return "params.yaml is what configs/ compose"


def _wandb() -> str:
    from pipeline.tracking import server

    mode, why = server.mode()
    return f"off ({why})" if mode == "off" else f"{mode}, project {os.environ['WANDB_PROJECT']}"


def _hub() -> str:
    from huggingface_hub import get_token

    return "logged in" if get_token() else "not logged in: public data sets and models only (hf auth login)"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        memory = torch.cuda.get_device_properties(0).total_memory
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: take train.precision=16-mixed"
        return f"{torch.cuda.device_count()} x {', '.join(sorted(names))}, {console.size(memory)}, {bf16}"
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    if shutil.which("nvidia-smi"):
        raise UserWarning(
            f"there is an NVIDIA driver, but torch {torch.__version__} finds no GPU; install a CUDA build of it"
        )
    return f"CPU, {torch.get_num_threads()} threads, {os.cpu_count()} cores"


def _attention() -> str:
    """Attention on the device against the formula, and which kernel computes it."""
    import torch
    from torch.nn import functional
    from torch.nn.attention import SDPBackend, sdpa_kernel

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
    """Our layer and litgpt's with the same weights give the same output."""
    import torch
    from litgpt.model import LLaMAMoE

    layer, config = _small_layer()
    reference = LLaMAMoE(config)
    reference.load_state_dict(layer.state_dict())
    x_BTC = torch.randn(2, 16, config.n_embd, generator=torch.Generator().manual_seed(0))
    error = (layer(x_BTC) - reference(x_BTC)).abs().max().item()
    if error > 1e-5:
        raise UserError(f"differs from litgpt's by {error:.1e}; install another build of torch")
    return f"equals litgpt's to {error:.0e}"


def _compile() -> str:
    import torch

    layer, config = _small_layer()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = layer.to(device)
    x_BTC = torch.randn(2, 16, config.n_embd, generator=torch.Generator().manual_seed(0)).to(device)
    error = (torch.compile(layer)(x_BTC) - layer(x_BTC)).abs().max().item()
    if error > 1e-4:
        raise UserError(f"the compiled layer differs by {error:.1e}: train with train.compile=off")
    return "compiles the expert layer, same output"


def _small_layer() -> "tuple[MoE, Config]":
    import torch
    from litgpt.config import Config

    from pipeline.model.moe import MoE

    torch.manual_seed(0)
    experts = {"n_expert": 4, "n_expert_per_token": 2, "moe_intermediate_size": 32}
    config = Config(
        n_embd=64, n_head=4, n_layer=1, bias=False, mlp_class_name="LLaMAMoE", intermediate_size=32, **experts
    )
    return MoE(config), config


_LIGHT: tuple[tuple[str, Callable[[], str]], ...] = (
    ("python", _python),
    ("packages", _packages),
    ("disk", _disk),
    ("git", _git),
    ("project", _project),
    ("configs", _configs),
    ("W&B", _wandb),
    ("Hugging Face Hub", _hub),
    ("device", _device),
)
_DEEP: tuple[tuple[str, Callable[[], str]], ...] = (
    ("attention", _attention),
    ("expert layer", _expert_layer),
    ("torch.compile", _compile),
)
