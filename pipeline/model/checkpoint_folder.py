"""A litgpt checkpoint folder: written whole, read with care.

    save(model, folder, tokenizer); model = load(folder)

lit_model.pth (a plain state dict under litgpt's names), model_config.yaml (litgpt's Config) and the tokenizer's files
are what litgpt reads; moe.yaml keeps params.Model and the vocabulary, which say what litgpt's config cannot.
"""

import dataclasses
import pickle
import re
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
import yaml
from litgpt.config import Config
from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.files import written_whole
from pipeline.model.build import MoEGPT, materialize, on_meta
from pipeline.params import Model, RopeScaling

WEIGHTS, CONFIG, PARAMS = "lit_model.pth", "model_config.yaml", "moe.yaml"


def save(model: MoEGPT, folder: Path, tokenizer: Path | None = None) -> None:
    """Write the model, and the files of the `tokenizer` folder, to `folder`; a previous one is replaced at the end."""
    with written_whole(folder) as partial:
        partial.mkdir()
        torch.save({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, partial / WEIGHTS)
        _write_yaml(partial / CONFIG, dataclasses.asdict(model.config))
        params = {"vocab_size": model.config.vocab_size, "model": model.params.model_dump(mode="json")}
        _write_yaml(partial / PARAMS, params)
        for file in sorted(tokenizer.iterdir()) if tokenizer else []:
            if file.is_file() and file.name not in (WEIGHTS, CONFIG, PARAMS):
                shutil.copy2(file, partial / file.name)


def refuse_to_replace(folder: Path) -> None:
    """Raise UserError where `save` to this folder would destroy something that is no checkpoint."""
    if folder.name in ("", ".."):
        raise UserError(f"{folder} cannot be written as a checkpoint folder; name a new one, e.g. models/imported")
    if not folder.exists() and not folder.is_symlink():
        return
    is_checkpoint = (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()
    if not folder.is_dir() or (any(folder.iterdir()) and not is_checkpoint):
        raise UserError(f"{folder} is there already and is no litgpt checkpoint folder; name a new one, or remove it")


def load(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> MoEGPT:
    """Read a folder that `save` or litgpt wrote; `dtype`: as stored if None.

    Raises UserError for a folder that is missing, damaged, holds code, or holds a model that is not ours to run.
    """
    folder = Path(folder)
    model, vocab_size = described(folder)
    state = _read_weights(folder / WEIGHTS)
    _refuse_flipped_bits(folder / WEIGHTS)
    gpt = on_meta(model, vocab_size, dtype or next(iter(state.values())).dtype)
    _refuse_differences(folder / WEIGHTS, gpt, state)
    materialize(gpt, device).load_state_dict(state)
    return gpt


def _write_yaml(path: Path, value: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a litgpt checkpoint folder has {WEIGHTS} and {CONFIG}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no mapping; write the checkpoint anew")
    return value


def described(folder: Path) -> tuple[Model, int]:
    """The model of a folder and its tokenizer's vocabulary, without reading the weights."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; train a model first (dvc repro train), or name a litgpt checkpoint")
    if not (folder / PARAMS).exists():
        return foreign(folder / CONFIG)
    described = _read_yaml(folder / PARAMS)
    try:
        return Model.model_validate(described["model"]), int(described["vocab_size"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise UserError(f"{folder / PARAMS} does not describe a model of this version: {error}") from None


_ONLY = {  # what litgpt's Config can say beyond us, and the value that we have
    "norm_class_name": "RMSNorm",
    "norm_qk_type": "default",
    "post_attention_norm": False,
    "post_mlp_norm": False,
    "parallel_residual": False,
    "bias": False,
    "attn_bias": False,
    "lm_head_bias": False,
    "attention_scores_scalar": None,
    "sliding_window_size": None,
    "attention_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rotary_percentage": 1.0,
    "rope_condense_ratio": 1,
    "rope_interleave": False,
    "rope_local_base_freq": None,
    "scale_embeddings": False,
    "norm_1": True,
    "norm_2": True,
    "latent_attention": None,
}


def foreign(path: Path) -> tuple[Model, int]:
    """params.Model and vocabulary of a model_config.yaml that litgpt wrote; UserError for what we do not have."""
    raw = _read_yaml(path)
    try:
        config = Config(**raw)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{path} is no litgpt config: {error}") from None
    for name, ours in _ONLY.items():
        if getattr(config, name) != ours:
            raise UserError(f"{path}: {name} = {getattr(config, name)!r}; only {ours!r} is supported here")
    if config.mlp_class_name not in ("LLaMAMLP", "LLaMAMoE"):
        raise UserError(f"{path}: mlp_class_name = {config.mlp_class_name}; allowed: LLaMAMLP, LLaMAMoE")
    if config.n_topk_groups != config.n_expert_groups:
        raise UserError(f"{path}: n_topk_groups = {config.n_topk_groups}; only all groups are supported here")
    adjust = config.rope_adjustments
    names = {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}
    if adjust is not None and set(adjust) != names:
        raise UserError(f"{path}: rope_adjustments has {sorted(adjust)}; only Llama 3's {sorted(names)} is supported")
    moe = config.mlp_class_name == "LLaMAMoE"
    sigmoid = bool(config.n_expert_groups)
    try:
        model = Model(
            vocab_size=config.padded_vocab_size,
            padding_multiple=1,
            block_size=config.block_size,
            n_layer=config.n_layer,
            n_embd=config.n_embd,
            n_head=config.n_head,
            head_size=config.head_size,
            n_query_groups=config.n_query_groups,
            norm_qk=config.norm_qk,
            norm_eps=config.norm_eps,
            tie_embeddings=False,  # litgpt keeps two matrices; equal ones stay equal
            rope_base=config.rope_base,
            rope_scaling=None if adjust is None else _rope_scaling(adjust),
            intermediate_size=config.intermediate_size,
            n_expert=config.n_expert if moe else 0,
            n_expert_per_token=config.n_expert_per_token if moe else 0,
            moe_intermediate_size=(config.moe_intermediate_size or config.intermediate_size),
            n_shared_expert=(config.n_shared_expert or 0) if moe else 0,
            moe_every=1,
            first_k_dense_replace=config.first_k_dense_replace or 0,
            router="sigmoid" if sigmoid else "softmax",
            norm_topk_prob=config.norm_topk_prob if sigmoid else True,  # litgpt's softmax router always normalizes
            routed_scaling_factor=config.routed_scaling_factor,
            dense_baseline="none",
        )
    except ValidationError as error:
        raise UserError(f"{path}: {error}") from None
    return model, config.vocab_size


def _rope_scaling(adjust: dict[str, Any]) -> RopeScaling:
    rest = {name: value for name, value in adjust.items() if name != "original_max_seq_len"}
    return RopeScaling(original_block_size=adjust["original_max_seq_len"], **rest)


def read_tensors(path: Path, mmap: bool = True) -> Any:
    """What torch.save wrote to `path`: tensors and plain values, on the CPU. Nothing in the file is executed.

    Raises UserError for anything else, without torch's hint to load it unsafely.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(2)
        if begin and begin != b"PK":  # torch has written zip files since 1.6; what came before is a bare pickle
            raise UserError(f"{path} is no checkpoint that torch >= 1.6 writes (a zip file); it is not opened")
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except pickle.UnpicklingError as error:
        names = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        what = f"it names {names[1]}" if names else "its pickle holds what no state dict does"
        raise UserError(f"{path} holds more than tensors, or is no checkpoint; it is not opened ({what})") from None
    except FileNotFoundError:
        raise
    except (
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OSError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged ({reason}); write the checkpoint anew, or take another") from None


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = read_tensors(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a litgpt checkpoint folder has {WEIGHTS} and {CONFIG}") from None
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]  # litgpt's trainer wraps it
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict of tensors; expected what torch.save(model.state_dict()) writes")
    return state


def _refuse_flipped_bits(path: Path) -> None:
    """Raise UserError where a tensor differs from the CRC-32 beside it, which torch writes and does not check."""
    try:
        with zipfile.ZipFile(path) as file:
            wrong = file.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, zlib.error, struct.error):
        wrong = "its list of tensors"
    if wrong:
        raise UserError(f"{path} is damaged (the checksum of {wrong} is wrong); write the checkpoint anew")


def _refuse_differences(path: Path, gpt: MoEGPT, state: dict[str, torch.Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in gpt.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    wrong += [f"{name} is not of this model" for name in sorted(found.keys() - expected.keys())]
    wrong += [
        f"{name} is {found[name]}, the config says {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{path} does not fit the model beside it: {'; '.join(wrong[:5])}{more}")
