"""What makes a training run the run that it is: the params, data and code that decide its weights; and which process
of it this one is. Imports no torch.

mine = identity(params, tokens, tokenizer); folder = runs / fingerprint(mine)
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pipeline import hashing
from pipeline.errors import UserError
from pipeline.params import Params, leaves, load

# Parameters that may change between a kill and the resumption: none of them touches a weight. A longer max_minutes
# lets a run that time had stopped go on.
_FREE = (
    "train.max_minutes",
    "train.num_workers",
    "train.log_every",
    "train.eval_every",
    "train.eval_samples",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_non_finite_steps",
    "train.routing_gate.",
)
_PIPELINE = Path(__file__).parents[1]
_CODE = ("tokens", "model", "train")  # rooms


def identity(params: Params, tokens: Path, tokenizer: Path) -> dict[str, Any]:
    """Every field that decides the weights, as plain values: dotted parameters, and hashes of data and code."""
    fields: dict[str, Any] = {}
    for section in ("model", "train"):
        for key, value in leaves(getattr(params, section), f"{section}."):
            if not key.startswith(_FREE):
                fields[key] = list(value) if isinstance(value, tuple) else value
    fields["data.tokens"] = hashing.file_sha256(tokens / "train" / "index.json")  # it holds a digest of the tokens
    fields["data.tokenizer"] = hashing.file_sha256(tokenizer / "tokenizer.json")
    if params.train.initial_checkpoint:
        weights = Path(params.train.initial_checkpoint) / "lit_model.pth"
        fields["data.initial_checkpoint"] = hashing.file_sha256(weights) if weights.is_file() else None
    fields["code"] = _code_hash()
    return json.loads(json.dumps(fields))


def fingerprint(fields: dict[str, Any]) -> str:
    """A short name that two runs share only if they end with the same weights."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def resume_key(params_file: Path, tokens: Path, tokenizer: Path) -> str | None:
    """The fingerprint of what a stage is about to do; None where that cannot be done (the stage then says why)."""
    try:
        return fingerprint(identity(load(params_file), tokens, tokenizer))
    except (UserError, OSError):
        return None


def rank() -> int:
    """This process's rank as its environment tells it, before anything was launched; 0 is the one that reports.

    torchrun sets RANK. Otherwise the one that reports is the first of its node (LOCAL_RANK, which Fabric gives to those
    it starts) on the first node (NODE_RANK, which a plain start on several nodes sets) or of Slurm's job; exact but on
    the later nodes of a plain start, where it only tells that this is another.
    """
    if os.environ.get("RANK", "").isdigit():
        return int(os.environ["RANK"])
    given = (os.environ.get(name, "") for name in ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"))
    return max([int(number) for number in given if number.isdigit()], default=0)


def differences(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """One line for each field that differs: `model.n_expert: 8 there, 4 here`."""
    return [
        f"{key}: {_short(other.get(key))} there, {_short(mine.get(key))} here"
        for key in sorted(mine.keys() | other.keys())
        if mine.get(key) != other.get(key)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:8]}…" if isinstance(value, str) and len(text) == 64 else text


def _code_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for room in _CODE for path in (_PIPELINE / room).rglob("*.py")):
        digest.update(path.relative_to(_PIPELINE).as_posix().encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()
