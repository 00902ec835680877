"""`moe doctor`: does this machine have what the pipeline needs? Each check really does the thing it speaks of."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline import console

_PACKAGES = ("torch", "lightning", "litgpt", "litdata", "transformers", "tokenizers", "daft", "dvc", "wandb")


@dataclass(frozen=True)
class Finding:
    what: str
    well: bool
    words: str


def examine(compile_too: bool = True) -> list[Finding]:
    """Run every check; `compile_too` also compiles and trains a small expert layer, which takes half a minute."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        ("packages", _packages),
        ("project", _project),
        ("disk", _disk),
        ("device", _device),
        ("attention", _attention),
        ("expert layer", _expert_layer),
        ("W&B", lambda: _environment("WANDB_PROJECT", "not set: nothing is mirrored")),
        ("Hugging Face Hub", lambda: _environment("HF_TOKEN", "HF_TOKEN not set: public data sets only")),
    ]
    if compile_too:
        checks.append(("torch.compile", _compile))
    findings = []
    for what, check in checks:
        try:
            findings.append(Finding(what, True, check()))
        except Exception as error:  # a check that fails is what we came for, whatever it raises
            findings.append(Finding(what, False, f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"))
    return findings


def report(findings: list[Finding]) -> bool:
    """Print the findings; True if all is well."""
    for finding in findings:
        console.say(f"{'ok  ' if finding.well else 'FAIL'}  {finding.what}: {finding.words}")
    return all(finding.well for finding in findings)


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise RuntimeError(f"Python {platform.python_version()}; 3.11 to 3.13 are supported")
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _packages() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)


def _project() -> str:
    from pipeline import params

    params.load()
    inside = subprocess.run(["git", "rev-parse", "--is-inside-work-tree"], capture_output=True, check=False)
    if inside.returncode:
        raise RuntimeError("not a git repository: `dvc exp run` needs one (git init)")
    return "params.yaml is valid"


def _disk() -> str:
    free = shutil.disk_usage(Path()).free
    if free < 2e9:
        raise RuntimeError(f"{console.size(free)} free; the default run needs 1 GB, its cache the same again")
    return f"{console.size(free)} free"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        memory = torch.cuda.get_device_properties(0).total_memory
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: take train.precision=16-mixed"
        return f"{torch.cuda.device_count()} x {', '.join(sorted(names))}, {console.size(memory)}, {bf16}"
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return f"CPU, {torch.get_num_threads()} threads, {os.cpu_count()} cores"


def _attention() -> str:
    """Attention on the device against the formula, and which kernel computes it."""
    import torch
    from torch.nn import functional
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    q, k, v = torch.randn(3, 1, 2, 64, 32, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    scores = (q.double() @ k.double().mT / 32**0.5).masked_fill(
        torch.ones(64, 64, device=device).triu(1).bool(), -torch.inf
    )
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
        raise RuntimeError(f"{kernel} is off by {error:.1e}")
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
        raise RuntimeError(f"differs from litgpt's by {error:.1e}")
    return f"equals litgpt's to {error:.0e}"


def _compile() -> str:
    import torch

    layer, config = _small_layer()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = layer.to(device)
    x_BTC = torch.randn(2, 16, config.n_embd, generator=torch.Generator().manual_seed(0)).to(device)
    expected = layer(x_BTC)
    error = (torch.compile(layer)(x_BTC) - expected).abs().max().item()
    if error > 1e-4:
        raise RuntimeError(f"the compiled layer differs by {error:.1e}")
    return "compiles the expert layer, same output"


def _small_layer():  # type: ignore[no-untyped-def]  # (MoE, litgpt.Config); importing them here would slow --help down
    import torch

    from pipeline import params
    from pipeline.model.build import build

    model = params.load().model.model_copy(
        update={"n_layer": 1, "n_embd": 64, "n_head": 4, "head_size": None, "n_query_groups": 4, "n_expert": 4}
        | {"n_expert_per_token": 2, "moe_intermediate_size": 32, "moe_every": 1, "first_k_dense_replace": 0}
        | {"n_shared_expert": 0, "router": "softmax", "norm_topk_prob": True, "routed_scaling_factor": 1.0}
        | {"dense_baseline": "none", "rope_scaling": None}
    )
    torch.manual_seed(0)
    gpt = build(model, 64)
    return gpt.transformer.h[0].mlp, gpt.config


def _environment(name: str, otherwise: str) -> str:
    return f"{name} is set" if os.environ.get(name) else otherwise
