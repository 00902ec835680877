"""Weights and configurations between our models and transformers, in memory and in a folder.

    write(model, folder, vocab_size, torch.bfloat16, max_shard_bytes, ids); config, weights = read(folder)

What goes where is said by the adapter of the class (adapter.py and its neighbours).

Legend: C n_embd, H head_size, Q n_head, G n_query_groups.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import save_torch_state_dict
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PretrainedConfig

from pipeline import params
from pipeline.errors import UserError
from pipeline.huggingface.adapter import BIAS, Adapter
from pipeline.huggingface.classes import BY_NAME, adapter_of
from pipeline.model.build import MoEGPT

State = dict[str, torch.Tensor]


def write(
    model: MoEGPT, folder: Path, vocab_size: int, dtype: torch.dtype, max_shard_bytes: int, ids: dict[str, Any]
) -> None:
    """Write config.json and the weights in `dtype`; a router's bias stays in float32, as transformers keeps it.

    `ids` are bos_token_id, eos_token_id and pad_token_id.
    """
    settings = adapter_of(model.params).config(model.params, vocab_size)
    config = transformers_config(model.params, vocab_size, **ids)
    config.dtype = dtype
    config.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written = adapter_of(model.params).older(settings) | {"torch_dtype": written["dtype"]} | written
    (folder / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    state = {
        # a copy, as safetensors takes no views
        name: weight.to("cpu", torch.float32 if name.endswith(BIAS) else dtype, copy=True).contiguous()
        for name, weight in to_huggingface(model.state_dict(), model.params, vocab_size).items()
    }
    save_torch_state_dict(state, folder, max_shard_size=max_shard_bytes)
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", file)  # safetensors writes through a file for the owner alone


def transformers_config(model: params.Model, vocab_size: int, **ids: int | None) -> PretrainedConfig:
    """The configuration of the model's transformers class, for a model as it is built (a dense baseline resolved)."""
    adapter = adapter_of(model)
    no_ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = _config_class(adapter)(**(adapter.config(model, vocab_size) | no_ids | ids))
    config.architectures = [adapter.name]
    return config


def read(folder: Path) -> tuple[params.Model, State]:
    """Our model and its weights, under litgpt's names in float32, from a folder as transformers writes it.

    Raises UserError, naming the setting or the weight, for what is damaged and for what our models do not have.
    """
    adapter, config = _read_config(folder)
    model = model_of(adapter, config, f"{folder / 'config.json'}")
    weights = {name: weight.float() for name, weight in _read_safetensors(folder).items()}
    without = model.model_copy(update={"n_shared_expert": 0})
    zeros = [weights[name] for name in adapter.zero_filled(without) if name in weights]
    if model.n_shared_expert and not any(torch.count_nonzero(weight) for weight in zeros):
        model = without  # the shared expert is zero-filled
    return model, from_huggingface(weights, model, adapter)


def model_of(adapter: Adapter, config: PretrainedConfig, place: str) -> params.Model:
    """The inverse of `transformers_config`; `place` names the configuration in errors."""
    try:
        return params.Model(**adapter.fields(config, place))
    except ValidationError as error:
        raise UserError(f"{place}: {error}") from None
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        # A setting that is absent, null, 0 or of another kind; which of the many it is, the error says best.
        raise UserError(f"{place}: a setting is missing or odd ({type(error).__name__}: {error})") from None


def to_huggingface(state: State, model: params.Model, vocab_size: int) -> State:
    """Weights under litgpt's names → under the class's. Views where nothing changes.

    Rows of the embedding beyond `vocab_size` (padding) are left out, so that no sampler can draw them; the logits
    of real tokens do not depend on them.
    """
    adapter = adapter_of(model)
    state = split_qkv(state, model)
    names = adapter.names(model)
    odd = sorted((names.keys() ^ state.keys()) - ({"lm_head.weight"} if model.tie_embeddings else set()))
    if odd:
        raise UserError(f"weights that do not fit the model's parameters: {', '.join(odd[:5])} ({len(odd)} in all)")
    written: State = {}
    for ours, theirs in names.items():
        weight = state[ours]
        if ours in ("transformer.wte.weight", "lm_head.weight"):
            weight = weight[:vocab_size]
        written[theirs] = weight if (scale := adapter.scale(ours)) == 1 else weight * scale
    return written | {name: torch.zeros(shape) for name, shape in adapter.zero_filled(model).items()}


def from_huggingface(weights: State, model: params.Model, adapter: Adapter) -> State:
    """The inverse of `to_huggingface`; UserError where a weight is missing, or one is there that we have no place for.

    What is zero-filled in an export may be absent (exports of earlier versions), of any shape, but not other than zero.
    """
    names, zero = adapter.names(model), adapter.zero_filled(model)
    tied = {"lm_head.weight"} if model.tie_embeddings else set()
    odd = sorted({*names.values()} - weights.keys()) + sorted(weights.keys() - {*names.values()} - zero.keys() - tied)
    if odd:
        kind = "missing" if odd[0] not in weights else "not known"
        raise UserError(f"weights do not fit {adapter.name}: {odd[0]} is {kind} ({len(odd)} such in all)")
    for name in zero:
        if name in weights and torch.count_nonzero(weights[name]):
            raise UserError(f"{name} is not zero; our models have no such weight (a bias, or a gated shared expert)")
    state = {ours: weights[theirs] / adapter.scale(ours) for ours, theirs in names.items()}
    if model.tie_embeddings:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    return join_qkv(state, model)


def split_qkv(state: State, model: params.Model) -> State:
    """Part each layer's qkv matrix [(Q+2G)·H, C] into q, k and v; litgpt stacks them in that order."""
    head_size = model.head_size or model.n_embd // model.n_head
    sizes = [model.n_head * head_size, model.n_query_groups * head_size, model.n_query_groups * head_size]
    parted: State = {}
    for name, weight in state.items():
        if name.endswith(".attn.qkv.weight"):
            for part, matrix in zip("qkv", weight.split(sizes), strict=True):
                parted[name.replace(".qkv.", f".{part}.")] = matrix
        else:
            parted[name] = weight
    return parted


def join_qkv(state: State, model: params.Model) -> State:
    """The inverse of `split_qkv`."""
    parts = tuple(f".attn.{part}.weight" for part in "qkv")
    joined = {name: weight for name, weight in state.items() if not name.endswith(parts)}
    for layer in range(model.n_layer):
        name = f"transformer.h.{layer}.attn"
        joined[f"{name}.qkv.weight"] = torch.cat([state[f"{name}.{part}.weight"] for part in "qkv"])
    return joined


def _config_class(adapter: Adapter) -> type[PretrainedConfig]:
    return getattr(transformers, adapter.name).config_class


def _read_config(folder: Path) -> tuple[Adapter, PretrainedConfig]:
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        name = str(raw["architectures"][0])
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json there; give a folder that transformers can load") from None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{path} is no configuration of a transformers model (no architectures in it)") from None
    if name not in BY_NAME:
        raise UserError(f"{path}: a {name}; allowed: {', '.join(BY_NAME)}")
    try:
        return BY_NAME[name], _config_class(BY_NAME[name]).from_dict(raw)
    except Exception as error:  # whatever transformers raises for settings that it cannot read
        raise UserError(f"{path}: transformers cannot read it ({type(error).__name__}: {error})") from None


def _read_safetensors(folder: Path) -> State:
    index = folder / "model.safetensors.index.json"
    try:
        files = ["model.safetensors"]
        if index.is_file():
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in files):
            raise UserError(f"{index} names files outside {folder}")
        return {name: tensor for file in files for name, tensor in load_file(folder / file).items()}
    except FileNotFoundError as error:
        raise UserError(f"{folder}: {error.filename or error} is missing; only safetensors are read") from None
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder} holds damaged weights ({error}); fetch it again") from None
