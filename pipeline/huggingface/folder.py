"""Our models as folders that plain transformers loads, and such folders as our models.

to_huggingface(model, tokenizer, into, "float32", max_shard_bytes)   # written only if verified equal
from_huggingface(folder, into)                                       # a litgpt checkpoint to train on from
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from pipeline import params
from pipeline.errors import UserError
from pipeline.files import written_whole
from pipeline.huggingface import verify, weights
from pipeline.huggingface.classes import adapter_of
from pipeline.model import build, checkpoint_folder, size
from pipeline.tokens import tokenizer as tokens

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
)


def to_huggingface(
    model: build.MoEGPT, tokenizer: Path, into: Path, dtype: str, max_shard_bytes: int
) -> dict[str, Any]:
    """Write config, weights, tokenizer and generation settings to `into`, and return a report.

    The folder is loaded by `AutoModelForCausalLM` and `AutoTokenizer` and compared with `model` (rounded to `dtype`,
    both computed in float32) before it takes its place; RuntimeError and no folder where they differ.
    The vocabulary is the tokenizer's: padding rows of the embedding are left out.
    """
    vocab_size = tokens.vocab_size(tokenizer)
    if vocab_size > model.config.padded_vocab_size:
        raise UserError(f"{tokenizer}: {vocab_size} tokens, but the model has {model.config.padded_vocab_size}")
    with written_whole(into) as folder:
        folder.mkdir()
        _copy_tokenizer(tokenizer, folder)
        settings = tokens.settings(tokenizer) | {
            "model_max_length": model.config.block_size,
            "model_input_names": ["input_ids", "attention_mask"],
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        ids = tokens.special_ids(tokenizer)
        weights.write(model, folder, vocab_size, getattr(torch, dtype), max_shard_bytes, ids)
        ids = ids | ({"pad_token_id": ids["eos_token_id"]} if ids["pad_token_id"] is None else {})
        GenerationConfig(**ids).save_pretrained(folder)
        parity = verify.compare(verify.rounded(model, getattr(torch, dtype)), folder, vocab_size)
        _same_ids(tokenizer, folder)
    padding = (model.config.padded_vocab_size - vocab_size) * model.config.n_embd
    parameters = sum(p.numel() for p in model.parameters()) - padding * (1 if model.params.tie_embeddings else 2)
    counted = size.count(model.params, vocab_size)
    return {
        "class": adapter_of(model.params).name,
        "dtype": dtype,
        "vocab_size": vocab_size,
        "parameters": parameters,
        "active_parameters": parameters - (counted.total - counted.active),
        "bytes": sum(f.stat().st_size for f in into.iterdir()),
        "max_logit_difference": parity.max_logit_difference,
        "positions_equal": parity.positions,
        "near_ties": parity.near_ties,
        "greedy_tokens": parity.generated,
        "greedy_tokens_equal": parity.generated_equal,
    }


def from_huggingface(folder: Path, into: Path) -> params.Model:
    """Turn a folder as transformers writes it (its class one of ours) into a litgpt checkpoint folder in float32.

    Returns the model's parameters; `to_continue` says what else training needs to go on from there.
    Raises UserError for a folder, a class or a setting that our models do not have, and where `into` is there already
    and is no checkpoint.
    """
    checkpoint_folder.refuse_to_replace(into)
    model, state = weights.read(folder)
    ours = build.on_meta(model, model.vocab_size or 0)
    wrong = [k for k, v in ours.state_dict().items() if v.shape != state[k].shape]
    if wrong:
        raise UserError(f"{folder}: {wrong[0]} has shape {list(state[wrong[0]].shape)}; config.json says otherwise")
    build.materialize(ours).load_state_dict(state)
    with tempfile.TemporaryDirectory(prefix="moe-import-") as place:
        _copy_tokenizer(folder, Path(place))
        checkpoint_folder.save(ours, into, Path(place))
    return model


def to_continue(model: params.Model, folder: Path) -> list[str]:
    """The parameters to set, as `dvc exp run -S` takes them, for training to go on from an imported folder."""

    def written(value: Any) -> str:  # as Hydra reads it: null, true, {factor:8.0,…}
        return json.dumps(value, separators=(",", ":")).replace('"', "")

    settings = [f"train.initial_checkpoint={folder.as_posix()}"]
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        settings += ["tokenizer=pretrained", f"tokenizer.path={folder.as_posix()}"]
    return settings + [f"model.{key}={written(value)}" for key, value in model.model_dump(mode="json").items()]


def _copy_tokenizer(folder: Path, into: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, into / name)


def _same_ids(tokenizer: Path, folder: Path) -> None:
    text = 'One day, Mia said: "Où est 1,024?"\n\n\t你好 🙂'
    try:
        words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        theirs = words(text, add_special_tokens=False)["input_ids"]
    except Exception as error:  # whatever transformers raises for settings that it cannot read
        raise UserError(f"{tokenizer}: AutoTokenizer cannot read it ({type(error).__name__}: {error})") from None
    ours = tokens.load(tokenizer).encode(text, add_special_tokens=False).ids
    if ours != theirs:
        raise RuntimeError(f"AutoTokenizer reads the tokenizer in {folder} differently: {theirs} instead of {ours}")
