"""Our models as GGUF files, for llama.cpp and what is built on it.

    write(model, tokenizer, Path("stories-q8_0.gguf"), "q8_0", {"name": "stories", "license": "apache-2.0"})

Which models llama.cpp can compute is decided with the params (`pipeline/huggingface/classes.py`). Layout after the
GGUF specification (ggml, docs/gguf.md) and llama.cpp's graphs: experts stacked [E, out, in]; in architecture llama
the rows of q and k are reordered, because llama.cpp rotates neighbouring pairs there and halves elsewhere.

Legend: C n_embd, H head_size, E n_expert, N blocks of q8_0.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

from pipeline import console, params
from pipeline.errors import UserError
from pipeline.files import written_whole
from pipeline.huggingface.classes import gguf_architecture
from pipeline.huggingface.weights import State, to_huggingface
from pipeline.model import size
from pipeline.model.build import MoEGPT
from pipeline.model.layout import moe_layers
from pipeline.tokens.tokenizer import special_ids

_FILE_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_Q8_BLOCK = 32  # values that share a scale; a row that is no multiple of it stays f16, as llama.cpp's own tool does
_NEARLY_ZERO = 1e-20  # llama.cpp computes sigmoid(x) as silu(x) / x, which is not a number at 0

# How llama.cpp cuts text into words before merging, by the names that a GGUF file may give (its llama-vocab.cpp).
_CONTRACTIONS = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT_2,),
    "llama-bpe": (rf"(?:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",),
    "qwen2": (rf"(?:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",),
    "smollm": (r"\p{N}", _GPT_2),
}
_PROBES = (  # from the most common text to the rarest
    "Once upon a time, there was a little girl named Lily.",
    "One day, Mia's cat said: \"I can't find the ball! We'll look for it.\"\n\nThey did.",
    "In 1999 he had 12 apples, 345 pears and 67890 nuts (a lot)...",
    "\tif x == 10:\n\t\treturn {'a': 1}  # done\n",
    "Ça coûte 5 €, naïve façade; Straße.",
    "从前有一个小女孩，她叫莉莉。",
    "He said 'Tom is here'. 'Sam too,' said Ann.",
    "'Tom is here,' said Ann.\n'Sam too.'",
    "हिन्दी में, cafe\u0301, ภาษาไทย",
    "日本語abc、東京2020",
)


def write(model: MoEGPT, tokenizer: Path, path: Path, kind: str, about: Mapping[str, Any]) -> None:
    """Write one file: weights in `kind` (f32, f16 or q8_0), hyperparameters and tokenizer.

    `about`: keys of `general.*` in the file, e.g. name, license and tags.

    Norms, routers and rotary factors stay in float32. The file is read back and compared with the weights before it
    takes its place; RuntimeError and no file where they differ by more than `kind` rounds. Raises UserError for a
    model or a tokenizer that llama.cpp has no place for.
    """
    try:
        architecture = gguf_architecture(model.params)
    except ValueError as error:
        raise UserError(f"GGUF: {error}") from None
    words = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    quantization, file_type = _FILE_TYPES[kind]
    with written_whole(path) as partial:
        writer = gguf.GGUFWriter(partial, architecture)
        n_token = _add_tokenizer(writer, words, tokenizer)
        if n_token > model.config.padded_vocab_size:
            raise UserError(f"{tokenizer}: {n_token} tokens, but the model has {model.config.padded_vocab_size}")
        writer.add_type(gguf.GGUFType.MODEL)
        for key, value in about.items():
            (writer.add_array if isinstance(value, list) else writer.add_string)(f"general.{key}", value)
        writer.add_size_label(_size_label(model.params, n_token))
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_hyperparameters(writer, model.params, n_token)
        for tensor_name, tensor in tensors(model, n_token):
            array = _array(tensor)
            stored = quantization
            if array.ndim == 1 or tensor_name.endswith("ffn_gate_inp.weight"):
                stored = gguf.GGMLQuantizationType.F32
            elif stored == gguf.GGMLQuantizationType.Q8_0 and array.shape[-1] % _Q8_BLOCK:
                stored = gguf.GGMLQuantizationType.F16
            writer.add_tensor(tensor_name, gguf.quants.quantize(array, stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        verify(partial, tensors(model, n_token))


def verify(path: Path, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Read a file back, tensor by tensor; RuntimeError where it holds other weights than these, rounding apart."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, weight in weights:
        if name not in stored:
            raise RuntimeError(f"{path}: {name} was not written")
        tensor, wanted = stored.pop(name), _array(weight)
        if (shape := tuple(tensor.shape.tolist()[::-1])) != wanted.shape:
            raise RuntimeError(f"{path}: {name} has shape {shape}, the model's {wanted.shape}")
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(wanted.shape)
        if not (np.abs(found - wanted) <= _rounding(wanted, tensor.tensor_type)).all():  # False for NaN
            raise RuntimeError(f"{path}: {name} reads back with other values than the model's")
    if stored:
        raise RuntimeError(f"{path}: {next(iter(stored))} is not of the model")


def _array(weight: torch.Tensor) -> np.ndarray:
    return weight.detach().to("cpu", torch.float32).contiguous().numpy()


def _rounding(weight: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """How far each value may be off: half a unit in the last place of float16, half a step of its block in q8_0."""
    if kind == gguf.GGMLQuantizationType.F32:
        return np.zeros_like(weight)
    if kind == gguf.GGMLQuantizationType.F16:
        return _half_unit(np.abs(weight))
    step_N1 = np.abs(weight.reshape(-1, _Q8_BLOCK)).max(1, keepdims=True) / 127  # itself rounded to float16
    bound_N1 = 0.501 * step_N1 + 127 * _half_unit(step_N1)
    return np.broadcast_to(bound_N1, (len(bound_N1), _Q8_BLOCK)).reshape(weight.shape)


def _half_unit(value: np.ndarray) -> np.ndarray:
    return np.maximum(value * 2.0**-11, 2.0**-25)  # below 2^-14 float16 has steps of 2^-24


def tensors(model: MoEGPT, n_token: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight under llama.cpp's name, shaped and ordered as it wants it: what transformers gets, renamed."""
    architecture = gguf_architecture(model.params)
    weights = _stacked(to_huggingface(model.state_dict(), model.params, n_token))
    if architecture == "qwen2moe":  # which has no rule for a missing one
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    if model.params.rope_scaling:
        yield "rope_freqs.weight", rope_factors(model.params)
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    renamed = gguf.get_tensor_name_map(kind, model.params.n_layer)
    heads = {"q_proj.weight": model.params.n_head, "k_proj.weight": model.params.n_query_groups}
    for name, weight in weights.items():
        part = name.split("self_attn.")[-1]
        if architecture == "llama" and part in heads:
            weight = interleave(weight, heads[part])
        elif name.endswith("shared_expert_gate.weight"):
            weight = torch.full((model.params.n_embd,), _NEARLY_ZERO)
        theirs = renamed.get_name(name.replace("correction_bias", "correction.bias"), (".weight", ".bias"))
        if theirs is None:
            raise RuntimeError(f"the gguf package has no name for {name} in {architecture}")
        yield theirs, weight


def _stacked(weights: State) -> State:
    """The experts' matrices [out, in] as one [E, out, in] a layer and part."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, weight in weights.items():
        found.setdefault(re.sub(r"\.experts\.\d+\.", ".experts.", name), []).append(weight)
    return {name: torch.stack(parts) if ".experts." in name else parts[0] for name, parts in found.items()}


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head [H, C]: 0, H/2, 1, H/2+1, … so that the pairs that rotate together are neighbours."""
    return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def rope_factors(model: params.Model) -> torch.Tensor:
    """What each of the H/2 rotary frequencies is divided by: Llama 3's stretching (arXiv 2407.21783), in float64."""
    scaling = model.rope_scaling
    assert scaling is not None
    head_size = model.head_size or model.n_embd // model.n_head
    frequency = model.rope_base ** -(torch.arange(0, head_size, 2).double() / head_size)
    turns = scaling.original_block_size * frequency / (2 * math.pi)
    kept = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return 1 / ((1 - kept) / scaling.factor + kept)


def _size_label(model: params.Model, n_token: int) -> str:
    """All parameters (2.3M), or experts and the parameters outside of them and of one (8x0.4M), as llama.cpp's tool."""
    counted = size.count(model, n_token)
    expert = 3 * model.n_embd * model.moe_intermediate_size * len(moe_layers(model))
    return gguf.size_label(counted.total, counted.total - model.n_expert * expert, expert, model.n_expert)


def _add_hyperparameters(writer: gguf.GGUFWriter, model: params.Model, n_token: int) -> None:
    head_size = model.head_size or model.n_embd // model.n_head
    writer.add_vocab_size(n_token)
    writer.add_context_length(model.block_size)
    writer.add_embedding_length(model.n_embd)
    writer.add_block_count(model.n_layer)
    writer.add_head_count(model.n_head)
    writer.add_head_count_kv(model.n_query_groups)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(float(model.rope_base))
    one_width = model.n_expert and gguf_architecture(model) == "llama"  # its experts'
    writer.add_feed_forward_length(model.moe_intermediate_size if one_width else model.intermediate_size)
    if not model.n_expert:
        return
    shared = max(1, model.n_shared_expert)  # zero-filled where we have none, if the architecture has one
    writer.add_expert_count(model.n_expert)
    writer.add_expert_used_count(model.n_expert_per_token)
    writer.add_expert_feed_forward_length(model.moe_intermediate_size)
    writer.add_expert_shared_count(shared)
    writer.add_expert_shared_feed_forward_length(shared * model.moe_intermediate_size)
    if model.router == "sigmoid":
        writer.add_leading_dense_block_count(moe_layers(model)[0])
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_norm(model.norm_topk_prob)
        writer.add_expert_weights_scale(model.routed_scaling_factor)


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def _add_tokenizer(writer: gguf.GGUFWriter, words: Tokenizer, folder: Path) -> int:
    described = json.loads(words.to_str())
    merges = described["model"].get("merges")
    if described["model"]["type"] != "BPE" or not isinstance(words.decoder, decoders.ByteLevel) or not merges:
        raise UserError(
            f"{folder}: GGUF takes byte-level BPE tokenizers with merges only (tokenizer.kind: train, or a pretrained "
            "one of that kind); set export.gguf: []"
        )
    by_id = {token_id: token for token, token_id in words.get_vocab(with_added_tokens=True).items()}
    special = {token["id"]: token["special"] for token in described["added_tokens"]}
    names, types = [], []
    for token_id in range(max(by_id) + 1):
        names.append(by_id.get(token_id, f"[PAD{token_id}]"))
        if token_id not in by_id:
            types.append(gguf.TokenType.UNUSED)
        elif token_id in special:
            types.append(gguf.TokenType.CONTROL if special[token_id] else gguf.TokenType.USER_DEFINED)
        else:
            types.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(nearest_cut(words))
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    _add_special_tokens(writer, words, folder)
    return len(names)


def _add_special_tokens(writer: gguf.GGUFWriter, words: Tokenizer, folder: Path) -> None:
    add: dict[str, Any] = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "pad": writer.add_pad_token_id,
    }
    for kind, write_id in add.items():
        token_id = special_ids(folder)[f"{kind}_token_id"]
        if token_id is not None:
            write_id(token_id)
    if (template := folder / "chat_template.jinja").is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def nearest_cut(words: Tokenizer) -> str:
    """The name of llama.cpp's way to cut words that gives this tokenizer's ids; warns where none gives them all."""
    expected = [words.encode(text, add_special_tokens=False).ids for text in _PROBES]
    agreeing: dict[str, list[bool]] = {}
    for name, patterns in CUTS.items():
        other = cut_as(words, patterns)
        found = [other.encode(text, add_special_tokens=False).ids for text in _PROBES]
        agreeing[name] = [a == b for a, b in zip(found, expected, strict=True)]
    best = max(agreeing, key=lambda name: agreeing[name])  # the first probes count most
    if not all(agreeing[best]):
        examples = ", ".join(repr(text) for text, same in zip(_PROBES, agreeing[best], strict=True) if not same)
        console.warn(
            f"GGUF: llama.cpp splits some text otherwise than this tokenizer ({best} is the nearest) and gives other "
            f"tokens for {examples}. If that matters, take a tokenizer that llama.cpp knows (tokenizer=gpt2 or another "
            "pretrained one like Qwen2's)"
        )
    return best


def cut_as(words: Tokenizer, patterns: tuple[str, ...]) -> Tokenizer:
    """The tokenizer, but cutting text by these patterns, one after the other."""
    other = Tokenizer.from_str(words.to_str())
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return other
