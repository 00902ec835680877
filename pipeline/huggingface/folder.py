"""Our models as folders that stock transformers classes load, and such folders as our models.

    to_huggingface(model, tokenizer, into, "float32", max_shard_bytes)   # written only if proved equal
    prove_exportable(params.model, vocab_size)                           # before training, in seconds
    from_huggingface(folder, into)                                       # a litgpt checkpoint to train on from

Legend: B batch, T time, E experts.
"""

import copy
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pipeline import params
from pipeline.errors import UserError
from pipeline.files import written_whole
from pipeline.huggingface.classes import stock_class
from pipeline.huggingface.stock import CONFIGS, from_stock, model_of, stock_config, to_stock
from pipeline.model import build, checkpoint_folder
from pipeline.tokens.tokenizer import special_ids

TOLERANCE = 1e-4  # largest difference of a logit, in float32
_TIE = 1e-5  # an expert is chosen by less than this (relative): rounding may choose another one
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
)
_PROVED_WHOLE = 20_000_000  # parameters up to which the very architecture is proved, not a narrower one


@dataclass(frozen=True)
class Parity:
    """How two models agree."""

    max_logit_difference: float
    positions: int  # that are equal
    near_ties: int  # that are not: rounding decided which expert they or an earlier one visit
    generated_equal: int  # greedy tokens that are the model's own, as are all before them
    generated: int  # greedy tokens in all


def to_huggingface(
    model: build.MoEGPT, tokenizer: Path, into: Path, dtype: str, max_shard_bytes: int
) -> dict[str, Any]:
    """Write config, weights, tokenizer and generation settings to `into`, and return a report.

    The folder is loaded by `AutoModelForCausalLM` and `AutoTokenizer` and compared with `model` (rounded to `dtype`,
    both computed in float32) before it takes its place; RuntimeError and no folder where they differ.
    The vocabulary is the tokenizer's: padding rows of the embedding are left out.
    """
    if not (tokenizer / "tokenizer.json").is_file():
        raise UserError(f"{tokenizer}: no tokenizer.json there; give the tokenizer's folder")
    words = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    vocab_size = max(words.get_vocab(with_added_tokens=True).values()) + 1
    if vocab_size > model.config.padded_vocab_size:
        raise UserError(f"{tokenizer}: {vocab_size} tokens, but the model has {model.config.padded_vocab_size}")
    with written_whole(into) as folder:
        folder.mkdir()
        for name in _TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, folder / name)
        ids = special_ids(tokenizer)
        _write(model, folder, vocab_size, getattr(torch, dtype), max_shard_bytes, ids)
        ids = ids | ({"pad_token_id": ids["eos_token_id"]} if ids["pad_token_id"] is None else {})
        GenerationConfig(**ids).save_pretrained(folder)
        parity = compare(rounded(model, getattr(torch, dtype)), folder, vocab_size)
        _same_words(words, folder)
    padding = (model.config.padded_vocab_size - vocab_size) * model.config.n_embd
    parameters = sum(p.numel() for p in model.parameters()) - padding * (1 if model.params.tie_embeddings else 2)
    counted = build.count(model.params, vocab_size)
    return {
        "class": stock_class(model.params),
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


def prove_exportable(model: params.Model, vocab_size: int) -> str:
    """Export this architecture with random weights, load it by transformers, compare; return what was proved.

    A model of more than 20 million parameters is proved at smaller widths and fewer layers of each kind: what
    could differ is the structure. Raises RuntimeError where the two disagree.
    """
    proved, shrunk = model, ""
    if build.count(model, vocab_size).total > _PROVED_WHOLE:
        proved, vocab_size, shrunk = _narrow(model), min(vocab_size, 512), " (narrowed)"
    ours = build.build(proved, vocab_size)
    _randomize(ours)
    with tempfile.TemporaryDirectory(prefix="moe-proof-") as place:
        folder = Path(place)
        _write(ours, folder, ours.config.vocab_size, torch.float32, 5_000_000_000, {})
        parity = compare(ours, folder, ours.config.vocab_size)
    return (
        f"{stock_class(model)} loads an export of this architecture{shrunk}: {apart(parity.max_logit_difference)} at "
        f"{parity.positions} positions, {parity.generated_equal} of {parity.generated} greedy tokens equal"
    )


def apart(difference: float) -> str:
    """The largest difference of a logit in words."""
    return f"logits within {difference:.0e}" if difference else "logits equal bit for bit"


@torch.no_grad()
def compare(model: build.MoEGPT, folder: Path, vocab_size: int, seed: int = 0) -> Parity:
    """Logits and greedy generation of `model` against the stock model in `folder`, both in float32 on the CPU.

    Where an expert wins by less than rounding errors, two right programs may route a token differently; so a
    difference is accepted from such a near tie on, if most positions are equal all the same. Raises RuntimeError on
    any other difference above `TOLERANCE`, and where a greedy token is not the model's own likeliest after the same
    tokens (or within `TOLERANCE` of it).
    """
    stock: Any = load_stock(folder)
    model = model.eval()
    length = min(model.config.block_size, 256)
    new = min(32, length // 2)
    idx_BT = torch.randint(vocab_size, (4, length), generator=torch.Generator().manual_seed(seed))
    logits_BTV, tied_BT = _logits(model, idx_BT, vocab_size)
    difference_BT = (logits_BTV - stock(idx_BT).logits).abs().amax(-1)
    same_BT = difference_BT <= TOLERANCE  # False for NaN
    if (~same_BT & ~tied_BT).any() or same_BT.float().mean() < 0.5:
        worst = difference_BT.max().item()
        raise RuntimeError(f"{type(stock).__name__} gives other logits than the model: they differ by {worst:.2e}")

    stock.generation_config.eos_token_id = None  # go on to the full length
    plain = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)
    generated_BT = stock.generate(idx_BT[:, :new], generation_config=plain, attention_mask=torch.ones(4, new).long())
    logits_BTV, tied_BT = _logits(model, generated_BT[:, :-1], vocab_size)
    logits_BTV, tied_BT, next_BT = logits_BTV[:, new - 1 :], tied_BT[:, new - 1 :], generated_BT[:, new:]
    chosen_BT = logits_BTV.gather(-1, next_BT[..., None])[..., 0]
    greedy_BT = logits_BTV.amax(-1) - chosen_BT <= TOLERANCE
    if (~greedy_BT & ~tied_BT).any() or greedy_BT.float().mean() < 0.5:
        raise RuntimeError(f"{type(stock).__name__} continues a prompt with other tokens than the model")
    # The model's own greedy text is the same up to the first token that it would not have chosen.
    own_BT = (logits_BTV.argmax(-1) == next_BT).long().cummin(dim=1).values
    return Parity(
        max_logit_difference=difference_BT[same_BT].max().item(),
        positions=int(same_BT.sum()),
        near_ties=int((~same_BT).sum()),
        generated_equal=int(own_BT.sum()),
        generated=own_BT.numel(),
    )


def from_huggingface(folder: Path, into: Path) -> params.Model:
    """Turn a folder of a stock class, as it comes from the Hub, into a litgpt checkpoint folder in float32.

    Returns the model's parameters; `to_continue` says what else training needs to go on from there.
    Raises UserError for a folder, a class or a setting that our models do not have, and where `into` is there already
    and is no checkpoint.
    """
    checkpoint_folder.refuse_to_replace(into)
    config = _read_config(folder)
    model = model_of(config, f"{folder / 'config.json'}")
    state = from_stock({k: v.float() for k, v in _read_safetensors(folder).items()}, model)
    ours = build.on_meta(model, config.vocab_size)
    wrong = [k for k, v in ours.state_dict().items() if v.shape != state[k].shape]
    if wrong:
        raise UserError(f"{folder}: {wrong[0]} has shape {list(state[wrong[0]].shape)}; config.json says otherwise")
    build.materialize(ours).load_state_dict(state)
    with tempfile.TemporaryDirectory(prefix="moe-import-") as place:
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, Path(place) / name)
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


def _read_config(folder: Path) -> PretrainedConfig:
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        name = str(raw["architectures"][0])
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json there; give a folder that transformers can load") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise UserError(f"{path} is no configuration of a transformers model (no architectures in it)") from None
    if name not in CONFIGS:
        raise UserError(f"{path}: a {name}; allowed: {', '.join(CONFIGS)}")
    try:
        return CONFIGS[name].from_dict(raw)
    except Exception as error:  # whatever transformers raises for settings that it cannot read
        raise UserError(f"{path}: transformers cannot read it ({type(error).__name__}: {error})") from None


def _read_safetensors(folder: Path) -> dict[str, Tensor]:
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
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} holds damaged weights ({error}); fetch it again") from None


def load_stock(folder: Path) -> PreTrainedModel:
    """The folder's model by plain transformers, in float32; RuntimeError if a weight is missing or left over."""
    options: dict[str, Any] = {"local_files_only": True, "output_loading_info": True}
    with _quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    stock, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info[kind]:
            raise RuntimeError(f"{folder}: transformers reports {kind}: {sorted(info[kind])[:5]}")
    stock.eval()
    return stock


def rounded(model: build.MoEGPT, dtype: torch.dtype) -> build.MoEGPT:
    """`model` with its weights rounded to `dtype`, in float32 on the CPU; the model itself where nothing changes."""
    if dtype == torch.float32 and all(p.dtype == dtype and p.device.type == "cpu" for p in model.parameters()):
        return model
    same = copy.deepcopy(model).to("cpu")
    with torch.no_grad():
        for weight in same.parameters():
            weight.data = weight.to(dtype).float()
    return same


def _write(
    model: build.MoEGPT, folder: Path, vocab_size: int, dtype: torch.dtype, max_shard_bytes: int, ids: dict[str, Any]
) -> None:
    config = stock_config(model.params, model.config.intermediate_size or 0, vocab_size, **ids)
    config.dtype = dtype
    config.save_pretrained(folder)
    state = to_stock(model.state_dict(), model.params, vocab_size, dtype)
    save_torch_state_dict(state, folder, max_shard_size=max_shard_bytes)


def _logits(model: build.MoEGPT, idx_BT: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Logits [B, T, vocab_size], and the positions from the first near tie of a router on [B, T]."""
    tied_BT = torch.zeros(idx_BT.shape, dtype=torch.bool)

    def watch(gate: Any, _: Any, output: Any) -> None:
        score_NE = output[2]
        if gate.kind == "sigmoid":
            score_NE = score_NE.sigmoid() + gate.e_score_correction_bias
        if gate.n_expert_per_token < score_NE.size(-1):
            best = score_NE.topk(gate.n_expert_per_token + 1).values
            gap_BT = (best[:, -2] - best[:, -1]).view(idx_BT.shape)
            tied_BT.logical_or_(gap_BT < _TIE * (1 + best.abs().amax(-1).view(idx_BT.shape)))

    hooks = [block.mlp.gate.register_forward_hook(watch) for block in model.transformer.h if hasattr(block.mlp, "gate")]
    try:
        logits_BTV = model(idx_BT)[..., :vocab_size]
    finally:
        for hook in hooks:
            hook.remove()
    return logits_BTV, tied_BT.cummax(dim=1).values


def _narrow(model: params.Model) -> params.Model:
    layers = min(model.n_layer, model.first_k_dense_replace + 2 * model.moe_every + 2)
    return model.model_copy(
        update={
            "vocab_size": None,
            "n_layer": layers,
            "n_embd": 64,
            "head_size": 16,
            "intermediate_size": 96,
            "moe_intermediate_size": 32,
            "block_size": min(model.block_size, 1024),
        }
    )


@torch.no_grad()
def _randomize(model: build.MoEGPT) -> None:
    """Weights of a size that keeps activations near 1, norms and router biases away from their neutral values."""
    draw = torch.Generator().manual_seed(0)
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if name in ("cos", "sin"):
            continue
        noise = torch.randn(weight.shape, generator=draw)
        if "norm" in name or name.endswith("ln_f.weight"):
            weight.copy_(1 + 0.1 * noise)
        elif weight.dim() == 1:  # a router's balancing bias
            weight.copy_(0.1 * noise)
        else:
            weight.copy_(noise / weight.shape[-1] ** 0.5)


def _same_words(words: Tokenizer, folder: Path) -> None:
    text = 'One day, Mia said: "Où est 1,024?"\n\n\t你好 🙂'
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)(text, add_special_tokens=False)["input_ids"]
    ours = words.encode(text, add_special_tokens=False).ids
    if ours != theirs:
        raise RuntimeError(f"AutoTokenizer reads the tokenizer in {folder} differently: {theirs} instead of {ours}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars, and torch's remark on weights of width 0."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
