"""A model that trains in milliseconds, and what tests ask of a run of it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline import params

ROOT = Path(__file__).parents[2]


def tiny(model: dict[str, Any] | None = None, optimizer: dict[str, Any] | None = None, **train: Any) -> params.Params:
    """The committed parameters with a model of 2 layers of 32, bytes for tokens, and a run of 12 steps."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["tokenizer"] |= {"kind": "bytes", "vocab_size": None, "chunk_tokens": 20_000}
    raw["model"] |= {
        "block_size": 32, "n_layer": 2, "n_embd": 32, "n_head": 2, "n_query_groups": 1, "n_expert": 4,
        "moe_intermediate_size": 32, "intermediate_size": 64,
    } | (model or {})  # fmt: skip
    raw["train"] |= {
        "device": "cpu", "block_size": 32, "global_batch_size": 8, "micro_batch_size": 4, "max_tokens": None,
        "max_steps": 12, "eval_every": 0, "eval_samples": 8, "log_every": 1, "checkpoint_every": 2, "compile": "off",
        "precision": "32-true",
    } | train  # fmt: skip
    raw["train"]["optimizer"] |= optimizer or {}
    raw["evaluate"]["stride"] = None
    return params.validate(raw)


def run(
    corpus: Path,
    out: Path,
    parameters: params.Params,
    resume: str = "auto",
    plots: bool = False,
    threads: int = 1,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train into out/model, in this process."""
    from pipeline.train import loop

    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # however busy this machine is
    torch.set_num_threads(threads)
    return loop.train(
        parameters, corpus / "tokens", corpus / "tokenizer", out / "model",
        runs=out / "runs", live=out / "live", plots=out / "plots" if plots else None, resume=resume, check=check,
    )  # fmt: skip


def weights(out: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(out / "model" / "lit_model.pth", weights_only=True)
    return state


def assert_same_bytes(one: Path, other: Path) -> None:
    """The two trained models are equal, bit by bit."""
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name].view(torch.uint8).equal(theirs[name].view(torch.uint8)), name
