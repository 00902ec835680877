"""Resumption: what makes a run the run that it is; finding, writing and restoring its checkpoints; initial weights.

    begin = find(params, planned, tokens, tokenizer, runs, resume="auto")      # which checkpoint to go on from, if any
    save(begin, step, total_steps, state, keep=2);   state = begin.checkpoint.load()

checkpoints/FINGERPRINT/step-XXXXXXXX/ holds state.pt (tensors and plain values) and meta.json (step of how many, sha256
of the state, identity of the run, torch's version).
"""

import hashlib
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from pipeline import console, hashing
from pipeline.errors import UserError
from pipeline.files import written_whole
from pipeline.model import build, checkpoint_folder
from pipeline.model.layout import moe_layers
from pipeline.params import Params, leaves
from pipeline.train import optimizers
from pipeline.train.plan import Adapter, Plan

_STATE, _META = "state.pt", "meta.json"
_ROOT = Path(__file__).parents[2]

# --- what makes a run the run that it is ------------------------------------------------------------------------------

# Parameters that may change between a kill and the resumption: none of them touches a weight. A longer max_minutes
# lets a run that time had stopped go on.
_FREE = (
    *("train.max_minutes", "train.num_workers", "train.log_every", "train.eval_every", "train.eval_samples"),
    *("train.checkpoint_every", "train.keep_checkpoints", "train.max_non_finite_steps", "train.routing_gate."),
)


def identity(params: Params, tokens: Path, tokenizer: Path, adapter: Adapter | None = None) -> dict[str, Any]:
    """Every field that decides the weights, as plain values: dotted parameters, and hashes of data and code."""
    fields: dict[str, Any] = {}
    for section in ("model", "train"):
        for key, value in leaves(getattr(params, section), f"{section}."):
            if not key.startswith(_FREE):
                fields[key] = list(value) if isinstance(value, tuple) else value
    fields["data.tokens"] = hashing.file_sha256(tokens / "train" / "index.json")  # it holds a digest of the tokens
    fields["data.tokenizer"] = hashing.file_sha256(tokenizer / "tokenizer.json")
    if params.train.initial_checkpoint:
        weights = Path(params.train.initial_checkpoint) / checkpoint_folder.WEIGHTS
        fields["data.initial_checkpoint"] = hashing.file_sha256(weights) if weights.is_file() else None
    fields |= adapter.identity if adapter else {}
    fields["code"] = _code_hash(_ROOT)
    return json.loads(json.dumps(fields))


def fingerprint(fields: dict[str, Any]) -> str:
    """A short name that two runs share only if they end with the same weights."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _code_hash(root: Path) -> str:
    """Of the code that dvc.yaml lists for train, so that whatever makes DVC train again makes another run.

    Without stages/train.py, which has no logic: editing a help text does not throw hours of training away.
    """
    listed = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["train"]["deps"]
    places = [root / path for path in listed if path.startswith("pipeline/")]
    digest = hashlib.sha256()
    sources = (file for place in places for file in ([place] if place.is_file() else place.rglob("*.[pc]*")))
    for path in sorted(file for file in sources if file.suffix in (".py", ".cpp")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def _differences(mine: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """One line for each field that differs: `model.n_expert: 8 there, 4 here`."""
    return [
        f"{key}: {_short(other.get(key))} there, {_short(mine.get(key))} here"
        for key in sorted(mine.keys() | other.keys())
        if mine.get(key) != other.get(key)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:8]}…" if isinstance(value, str) and len(text) == 64 else text


# --- finding the checkpoint to go on from -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    step: int  # optimizer steps that are done
    total_steps: int  # of the run that wrote it
    identity: dict[str, Any]
    torch: str  # the version that wrote it
    micro_batch_size: int

    def load(self, mmap: bool = False) -> dict[str, Any]:
        """Tensors and plain values only; nothing in the file is executed. Raises UserError for anything else."""
        state = checkpoint_folder.read_tensors(self.path / _STATE, mmap)
        if not isinstance(state, dict) or not state.keys() >= _KEYS:
            raise UserError(f"the checkpoint {self.path} is of another version of this project")
        return state


@dataclass(frozen=True)
class Beginning:
    folder: Path  # of this run's checkpoints
    identity: dict[str, Any]
    checkpoint: Checkpoint | None


_KEYS = {
    *("model", "optimizers", "loss_scale", "random", "threads", "gate", "last", "non_finite_steps"),
    *("compiled", "elapsed", "validated", "products", "kernels", "micro_batch_size"),
}
# Fields that decide whether a checkpoint's tensors fit at all, and mean the same.
_OF_THE_MODEL = ("model.", "data.tokenizer", "train.optimizer.name", "finetune.")


def find(params: Params, planned: Plan, tokens: Path, tokenizer: Path, runs: Path, resume: str) -> Beginning:
    """`resume`: auto (the newest checkpoint of this run that is whole and fits), never, or a path.

    Raises UserError where the path has no checkpoint that this run can go on from, with what differs.
    """
    mine = identity(params, tokens, tokenizer, planned.adapter)
    folder = runs / fingerprint(mine)
    if resume == "never":
        return Beginning(folder, mine, None)
    if resume == "auto":
        found = newest(folder, params, planned)
    else:
        found = opened(Path(resume))
        different = _differences(mine, found.identity)
        if fatal := [line for line in different if line.startswith(_OF_THE_MODEL)]:
            raise UserError("\n  ".join([f"--resume {resume}: the checkpoint is of another model:", *fatal]))
        _refuse_misfit(found, params, planned)
        if different:
            words = f"--resume {resume}: the same model, but another run (it goes on with what stands here):"
            console.warn("\n  ".join([words, *different]))
    if found and found.torch != torch.__version__:
        console.warn(f"{found.path} was written by torch {found.torch}; last digits may differ from here on")
    return Beginning(folder, mine, found)


def newest(folder: Path, params: Params, planned: Plan) -> Checkpoint | None:
    """The newest checkpoint that is whole and fits; others are passed over with a warning."""
    paths = _steps(folder)
    for path in reversed(paths):
        try:
            found = opened(path)
            if found.total_steps != planned.total_steps:
                raise UserError(f"{path} is of a run of {found.total_steps} steps, this one has {planned.total_steps}")
            _refuse_misfit(found, params, planned)
            return found
        except UserError as error:
            console.warn(f"{error}; {'training starts anew' if path == paths[0] else 'trying the one before'}")
    return None


def opened(path: Path) -> Checkpoint:
    """The checkpoint in this folder, or the newest in a folder of them. Raises UserError where it is damaged."""
    if not (path / _META).is_file() and (inside := _steps(path)):
        path = inside[-1]
    try:
        meta = json.loads((path / _META).read_text(encoding="utf-8"))
        whole = hashing.file_sha256(path / _STATE) == meta["sha256"]
        checkpoint = Checkpoint(
            path,
            int(meta["step"]),
            int(meta["total_steps"]),
            dict(meta["identity"]),
            str(meta["torch"]),
            int(meta["micro_batch_size"]),
        )
    except FileNotFoundError as error:
        raise UserError(f"{path} is no checkpoint of a training run ({Path(error.filename).name} is missing)") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"the checkpoint {path} is damaged ({error!r})") from None
    if not whole:
        raise UserError(f"the checkpoint {path} is damaged (its checksum differs)")
    return checkpoint


def _refuse_misfit(found: Checkpoint, params: Params, planned: Plan) -> None:
    """Believe no checkpoint by its name alone: the code that wrote it may have planned or built something else."""
    if found.step > planned.total_steps:
        raise UserError(
            f"the checkpoint {found.path} is of step {found.step}, and this run has {planned.total_steps} steps"
        )
    state = found.load(mmap=True)
    gpt = build.on_meta(params.model, planned.vocab_size)
    if planned.adapter:
        planned.adapter.put_in(gpt, params.train.seed)
    try:
        wrong = _misfit_of_model(gpt, state["model"])
        for i, optimizer in enumerate(optimizers.build(gpt, params.train.optimizer, torch.device("meta"))):
            wrong += _misfit_of_optimizer(optimizer, state["optimizers"][i])
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        wrong = [f"its state has another form: {error!r}"]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"the checkpoint {found.path} does not fit this model: {'; '.join(wrong[:3])}{more}")


def _misfit_of_model(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    here = {name: tuple(tensor.shape) for name, tensor in _tensors(model).items()}
    there = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return [
        f"{name} is {there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]


def _misfit_of_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> list[str]:
    name = type(optimizer).__name__
    here, there = ([len(group["params"]) for group in each] for each in (optimizer.param_groups, state["param_groups"]))
    if here != there:
        return [f"{name} has groups of {there} parameters there, {here} here"]
    flat = [p for group in optimizer.param_groups for p in group["params"]]
    return [
        f"{name} keeps {tuple(value.shape)} as {key} of a parameter of {tuple(flat[i].shape)}"
        for i, entry in state["state"].items()
        for key, value in entry.items()
        if isinstance(value, Tensor) and value.dim() == flat[i].dim()
        if any(a not in (1, b) for a, b in zip(value.shape, flat[i].shape, strict=True))
    ]


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))  # a write that was cut short is called .step-*.partial


# --- writing and removing ---------------------------------------------------------------------------------------------


def save(begin: Beginning, step: int, total_steps: int, state: dict[str, Any], keep: int) -> None:
    """Write a checkpoint aside, rename it into place, and only then remove all but the newest `keep`."""
    assert state.keys() == _KEYS
    with written_whole(begin.folder / f"step-{step:08d}") as partial:
        partial.mkdir()
        torch.save(state, partial / _STATE)
        meta = {
            "step": step,
            "total_steps": total_steps,
            "sha256": hashing.file_sha256(partial / _STATE),
            "torch": torch.__version__,
            "micro_batch_size": state["micro_batch_size"],
            "identity": begin.identity,
        }
        (partial / _META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
    for old in _steps(begin.folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def forget_after(folder: Path, step: int, begin: Checkpoint | None) -> None:
    """Remove what a run that begins again at `step` makes anew; it would pass for newer than the run itself.

    So would one of the same step that is not `begin`, which the run goes on from. And where nothing stands in the
    place of a new checkpoint, no kill can fall between taking away the old one and putting the new one there.
    """
    for path in _steps(folder):
        of = path.name.removeprefix("step-")
        if not of.isdigit() or int(of) > step or (int(of) == step and not (begin and path.samefile(begin.path))):
            shutil.rmtree(path)


def forget_other_finished_runs(folder: Path) -> None:
    """Keep the last checkpoint of this run, in case that DVC asks for it again, and of no other finished run."""
    for other in folder.parent.iterdir():
        if other != folder and other.is_dir() and is_finished(other):
            shutil.rmtree(other, ignore_errors=True)


def is_finished(folder: Path) -> bool:
    """Whether the run of these checkpoints went to its end."""
    try:
        meta = json.loads((_steps(folder)[-1] / _META).read_text(encoding="utf-8"))
        return bool(meta["step"] >= meta["total_steps"])
    except (IndexError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


# --- what goes in: tensors whole and on the CPU -----------------------------------------------------------------------
# torch.distributed.checkpoint.state_dict does not do it: it looks tensors up by the names of the state dict, which are
# litgpt's here, and knows no optimizer whose parameters are views of the model's (Muon on stacked experts).


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under the model's own names; every rank must call it."""
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


# --- initial weights: of a model of the same architecture, or refused with the fields that differ ---------------------

# What the shapes of the weights do not tell, and what they compute depends on.
_OF_CONFIG = (
    *("n_head", "head_size", "n_query_groups", "norm_eps", "norm_qk", "rope_base", "rope_adjustments"),
    *("n_expert_per_token", "routed_scaling_factor"),
)
# What they do tell; named where a shape differs.
_OF_SHAPES = (
    *("n_layer", "n_embd", "padded_vocab_size", "intermediate_size", "n_expert", "moe_intermediate_size"),
    *("n_shared_expert", "first_k_dense_replace"),
)


def take_weights(gpt: build.MoEGPT, folder: Path) -> None:
    """Begin with the weights of a litgpt folder. Raises UserError where it holds another architecture."""
    other = checkpoint_folder.load(folder)
    weights = other.state_dict()
    fits = {name: w.shape for name, w in weights.items()} == {name: w.shape for name, w in gpt.state_dict().items()}
    differing = _differing_fields(gpt, other, shapes=not fits)
    if differing or not fits:
        what = "; ".join(differing) or "its layers are of other kinds"
        raise UserError(
            f"train.initial_checkpoint = {folder} is of another model: {what}. Set model to what it is, or "
            "train.initial_checkpoint to null"
        )
    gpt.load_state_dict(weights)


def _differing_fields(gpt: build.MoEGPT, other: build.MoEGPT, shapes: bool) -> list[str]:
    """One line a field: `rope_base: 10000 there, 50000 here`."""
    pairs: list[tuple[str, Any, Any]] = [
        (name, getattr(other.config, name), getattr(gpt.config, name))
        for name in (*_OF_CONFIG, *(_OF_SHAPES if shapes else ()))
    ]
    # litgpt writes two matrices also where they are one; equal ones were.
    tied = other.params.tie_embeddings or bool(other.lm_head.weight.equal(other.transformer.wte.weight))
    pairs.append(("tie_embeddings", tied, gpt.params.tie_embeddings))
    if moe_layers(gpt.params) and moe_layers(other.params):
        for name in ("router", "norm_topk_prob", *(("moe_every",) if shapes else ())):
            pairs.append((name, getattr(other.params, name), getattr(gpt.params, name)))
    return [f"{name}: {there} there, {here} here" for name, there, here in pairs if there != here]
