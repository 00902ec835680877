"""Which checkpoint a run goes on from: its own newest one, one that was named, or none."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import console
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.train import checkpoint
from pipeline.train.identity import differences, fingerprint, identity

# Fields that decide whether a checkpoint's tensors fit at all, and mean the same.
_OF_THE_MODEL = ("model.", "data.tokenizer", "train.optimizer.name")


@dataclass(frozen=True)
class Beginning:
    folder: Path  # of this run's checkpoints
    identity: dict[str, Any]
    checkpoint: checkpoint.Checkpoint | None


def find(params: Params, tokens: Path, tokenizer: Path, runs: Path, resume: str) -> Beginning:
    """`resume`: auto, never or a path. Raises UserError for another model's checkpoint, with the fields that differ."""
    mine = identity(params, tokens, tokenizer)
    folder = runs / fingerprint(mine)
    if resume == "never":
        return Beginning(folder, mine, None)
    if resume == "auto":
        found = checkpoint.newest(folder)
    else:
        found = checkpoint.opened(Path(resume))
        different = differences(mine, found.meta.get("identity", {}))
        fatal = [line for line in different if line.startswith(_OF_THE_MODEL)]
        if fatal:
            lines = "\n  ".join(fatal)
            raise UserError(f"--resume {resume}: the checkpoint is of another model:\n  {lines}")
        if different:
            lines = "\n  ".join(different)
            console.warn(
                f"--resume {resume}: the same model, but another run (it goes on with what stands here):\n  {lines}"
            )
    if found and found.meta["torch"] != torch.__version__:
        console.warn(f"{found.path} was written by torch {found.meta['torch']}; last digits may differ from here on")
    return Beginning(folder, mine, found)
