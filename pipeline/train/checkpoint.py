"""What a run resumes from: whole checkpoints in checkpoints/FINGERPRINT/step-XXXXXXXX/, checksummed, the last K kept.

save(folder, step, state, meta, keep=2);  newest(folder) -> Checkpoint | None;  checkpoint.load() -> state
"""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import console, hashing
from pipeline.errors import UserError
from pipeline.files import written_whole

_STATE, _META = "state.pt", "meta.json"


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int  # optimizer steps that are done
    meta: dict[str, Any]  # step, sha256 of the state, identity of the run, finished, versions

    def load(self) -> dict[str, Any]:
        """Tensors and plain values only; nothing in the file is executed."""
        return torch.load(self.path / _STATE, map_location="cpu", weights_only=True)


def save(folder: Path, step: int, state: dict[str, Any], meta: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint aside, rename it into place, and only then remove all but the newest `keep`."""
    path = folder / f"step-{step:08d}"
    with written_whole(path) as partial:
        partial.mkdir()
        torch.save(state, partial / _STATE)
        described = {"step": step, "sha256": hashing.file_sha256(partial / _STATE), "torch": torch.__version__, **meta}
        (partial / _META).write_text(json.dumps(described, indent=1), encoding="utf-8")
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run; one that is damaged is passed over with a warning."""
    for path in reversed(_steps(folder)):
        try:
            return opened(path)
        except UserError as error:
            console.warn(f"{error}; trying the one before")
    return None


def opened(path: Path) -> Checkpoint:
    """The checkpoint in this folder, or the newest in a folder of them. Raises UserError where it is damaged."""
    if not (path / _META).is_file() and (inside := _steps(path)):
        path = inside[-1]
    try:
        meta = json.loads((path / _META).read_text(encoding="utf-8"))
        whole = hashing.file_sha256(path / _STATE) == meta["sha256"]
        checkpoint = Checkpoint(path, int(meta["step"]), meta)
    except FileNotFoundError as error:
        raise UserError(f"{path} is no checkpoint of a training run ({Path(error.filename).name} is missing)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the checkpoint {path} is damaged ({error!r})") from None
    if not whole:
        raise UserError(f"the checkpoint {path} is damaged (its checksum differs)")
    return checkpoint


def forget_after(folder: Path, step: int, begin: Checkpoint | None) -> None:
    """Remove what a run that begins again at `step` makes anew; it would pass for newer than the run itself.

    So would one of the same step that is not `begin`, which the run goes on from. And where nothing stands in the
    place of a new checkpoint, no kill can fall between taking away the old one and putting the new one there.
    """
    for path in _steps(folder):
        of = int(path.name.removeprefix("step-"))
        if of > step or (of == step and not (begin and path.samefile(begin.path))):
            shutil.rmtree(path)


def is_finished(folder: Path) -> bool:
    """Whether the run of these checkpoints went to its end."""
    try:
        return bool(json.loads((_steps(folder)[-1] / _META).read_text(encoding="utf-8"))["finished"])
    except (IndexError, OSError, ValueError, KeyError):
        return False


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))  # a write that was cut short is called .step-*.partial


# --- what goes in -----------------------------------------------------------------------------------------------------


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under the model's own names, whole and on the CPU; every rank must call it."""
    return {name: _whole(tensor) for name, tensor in _tensors(model).items()}


def load_model_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            tensor.copy_(_laid_out_as(tensor, state[name]))


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state = optimizer.state_dict()
    state["state"] = {
        i: {k: _whole(v) if isinstance(v, Tensor) else v for k, v in entry.items()}
        for i, entry in state["state"].items()
    }
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take up moments and step counts; rates, decay and betas stay those that the optimizer was made with.

    They stand in params: a run that goes on from a named checkpoint with other settings trains with those.
    """
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    flat = [p for group in optimizer.param_groups for p in group["params"]]
    for i, entry in state["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.shape == flat[i].shape:
                entry[key] = _laid_out_as(flat[i], value)
    optimizer.load_state_dict(state)
    for group, now in zip(optimizer.param_groups, settings, strict=True):
        group.update(now)


def random_state() -> dict[str, Any]:
    """Where all generators of this process stand, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def load_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    kept = set(model.state_dict().keys())
    buffers = {name: b for name, b in model.named_buffers() if name in kept}  # rotary tables are computed, not kept
    return {**dict(model.named_parameters()), **buffers}


def _whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().to("cpu", copy=True)


def _laid_out_as(target: Any, value: Tensor) -> Tensor:
    if not hasattr(target, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
