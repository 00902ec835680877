"""Our model in the words of a stock transformers class: its configuration, and the name of every weight.

Which class is decided in pipeline/huggingface/classes.py. The classes differ from ours only in names and in parts that
are neutral here: Qwen2-MoE gates its shared expert by sigmoid(x·g), so g is zero and the shared
down-projection is doubled (0.5 · 2 w, exact in binary); a shared expert that we do not have gets width 0.

Legend: C n_embd, H head_size, Q n_head, G n_query_groups, E n_expert, V vocabulary.
"""

from typing import Any

import torch
from pydantic import ValidationError
from transformers import (
    Glm4MoeConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from pipeline import params
from pipeline.errors import UserError
from pipeline.huggingface.classes import stock_class
from pipeline.model.layout import moe_layers

State = dict[str, torch.Tensor]
CONFIGS: dict[str, type[PretrainedConfig]] = {
    "LlamaForCausalLM": LlamaConfig,
    "Qwen3ForCausalLM": Qwen3Config,
    "MixtralForCausalLM": MixtralConfig,
    "Qwen2MoeForCausalLM": Qwen2MoeConfig,
    "Qwen3MoeForCausalLM": Qwen3MoeConfig,
    "Glm4MoeForCausalLM": Glm4MoeConfig,
}
_DENSE = ("LlamaForCausalLM", "Qwen3ForCausalLM")
_QK_NORM = ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM")
_BIAS = "gate.e_score_correction_bias"


def stock_config(model: params.Model, intermediate_size: int, vocab_size: int, **ids: int | None) -> PretrainedConfig:
    """The stock class's configuration; `ids` are bos_token_id, eos_token_id and pad_token_id.

    `intermediate_size` is the width of a dense layer as built (a dense baseline's is not the one in params).
    """
    name = stock_class(model)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(model.rope_base)}
    if scaling := model.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_block_size,
        }
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": model.n_embd,
        "intermediate_size": model.moe_intermediate_size if name == "MixtralForCausalLM" else intermediate_size,
        "num_hidden_layers": model.n_layer,
        "num_attention_heads": model.n_head,
        "num_key_value_heads": model.n_query_groups,
        "head_dim": model.head_size or model.n_embd // model.n_head,
        "max_position_embeddings": model.block_size,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "rope_parameters": rope,
        **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
        **ids,
    }
    if name not in _DENSE:
        settings["num_experts_per_tok"] = model.n_expert_per_token
    if name == "MixtralForCausalLM":
        settings["num_local_experts"] = model.n_expert
    elif name == "Glm4MoeForCausalLM":
        rope["partial_rotary_factor"] = 1.0
        settings |= {
            "partial_rotary_factor": 1.0,
            "use_qk_norm": model.norm_qk,
            "n_routed_experts": model.n_expert,
            "n_shared_experts": model.n_shared_expert,
            "moe_intermediate_size": model.moe_intermediate_size,
            "first_k_dense_replace": moe_layers(model)[0],
            "norm_topk_prob": model.norm_topk_prob,
            "routed_scaling_factor": model.routed_scaling_factor,
        }
    elif name not in _DENSE:
        settings |= {
            "num_experts": model.n_expert,
            "moe_intermediate_size": model.moe_intermediate_size,
            "norm_topk_prob": model.norm_topk_prob,
            "mlp_only_layers": sorted(set(range(model.n_layer)) - set(moe_layers(model))),
        }
        if name == "Qwen2MoeForCausalLM":
            shared = model.n_shared_expert * model.moe_intermediate_size
            settings |= {"qkv_bias": False, "shared_expert_intermediate_size": shared}
    config = CONFIGS[name](**settings)
    config.architectures = [name]
    return config


def model_of(config: PretrainedConfig, place: str) -> params.Model:
    """The inverse of `stock_config`: our parameters for a stock configuration read from `place`.

    Raises UserError, naming the setting, for what our models do not have.
    """
    try:
        return _model_of(config, place)
    except ValidationError as error:
        raise UserError(f"{place}: {error}") from None
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        # A setting that is absent, null, 0 or of another kind; which of the many it is, the error says best.
        raise UserError(f"{place}: a setting is missing or odd ({type(error).__name__}: {error})") from None


def _model_of(config: PretrainedConfig, place: str) -> params.Model:
    name = (config.architectures or ["?"])[0]
    if name not in CONFIGS:
        raise UserError(f"{place}: a {name}; allowed: {', '.join(CONFIGS)}")
    _refuse_foreign_settings(config, place)
    rope = config.rope_parameters
    dense = name in _DENSE
    sparse = [] if dense else _sparse_layers(config, name)
    every, first = _spacing(sparse, config.num_hidden_layers, place)
    expert_width = (
        config.intermediate_size if name == "MixtralForCausalLM" else getattr(config, "moe_intermediate_size", 1)
    )
    shared = getattr(config, "n_shared_experts", 0) or 0
    if name == "Qwen2MoeForCausalLM":
        shared, rest = divmod(config.shared_expert_intermediate_size, expert_width)
        if rest:
            raise UserError(
                f"{place}: shared_expert_intermediate_size = {config.shared_expert_intermediate_size}; "
                f"allowed: multiples of moe_intermediate_size = {expert_width}"
            )
    scaling = {ours: rope[theirs] for ours, theirs in _ROPE.items()} if rope["rope_type"] == "llama3" else None
    model = params.Model(
        vocab_size=config.vocab_size,
        padding_multiple=1,
        block_size=config.max_position_embeddings,
        n_layer=config.num_hidden_layers,
        n_embd=config.hidden_size,
        n_head=config.num_attention_heads,
        head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        n_query_groups=config.num_key_value_heads,
        norm_qk=name in _QK_NORM or bool(getattr(config, "use_qk_norm", False)),
        norm_eps=config.rms_norm_eps,
        tie_embeddings=config.tie_word_embeddings,
        rope_base=rope["rope_theta"],
        rope_scaling=None if scaling is None else params.RopeScaling(**scaling),
        intermediate_size=config.intermediate_size,
        n_expert=0 if dense else config.num_local_experts if name == "MixtralForCausalLM" else _n_expert(config),
        n_expert_per_token=0 if dense else config.num_experts_per_tok,
        moe_intermediate_size=expert_width,
        n_shared_expert=shared,
        moe_every=every,
        first_k_dense_replace=first,
        router="sigmoid" if name == "Glm4MoeForCausalLM" else "softmax",
        norm_topk_prob=getattr(config, "norm_topk_prob", True),
        routed_scaling_factor=getattr(config, "routed_scaling_factor", 1.0),
        dense_baseline="none",
    )
    if stock_class(model) != name:
        raise UserError(f"{place}: a {name} in a form that this project writes as {stock_class(model)}; not supported")
    return model


_ROPE = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_block_size": "original_max_position_embeddings",
}
_ONLY: dict[str, tuple[Any, ...]] = {  # setting of any stock class → what we have; None: the class lacks it
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "qkv_bias": (False, None),
    "decoder_sparse_step": (1, None),
    "n_group": (1, None),
    "topk_group": (1, None),
    "quantization_config": (None,),
    "pretraining_tp": (1, None),
}


def _refuse_foreign_settings(config: PretrainedConfig, place: str) -> None:
    for setting, allowed in _ONLY.items():
        if (value := getattr(config, setting, None)) not in allowed:
            raise UserError(f"{place}: {setting} = {value!r}; only {allowed[0]!r} is supported here")
    window = getattr(config, "sliding_window", None)
    if window and window < config.max_position_embeddings and getattr(config, "use_sliding_window", True):
        raise UserError(f"{place}: sliding_window = {window}; only attention to the whole context is supported here")
    rope = config.rope_parameters
    if rope["rope_type"] not in ("default", "llama3"):
        raise UserError(f"{place}: rope_type = {rope['rope_type']}; allowed: default, llama3")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{place}: partial_rotary_factor = {rope['partial_rotary_factor']}; allowed: 1.0")
    if rope["rope_theta"] != int(rope["rope_theta"]):
        raise UserError(f"{place}: rope_theta = {rope['rope_theta']}; allowed: whole numbers")


def _n_expert(config: PretrainedConfig) -> int:
    return getattr(config, "n_routed_experts", None) or config.num_experts


def _sparse_layers(config: PretrainedConfig, name: str) -> list[int]:
    layers = range(config.num_hidden_layers)
    if name == "MixtralForCausalLM":
        return list(layers)
    if name == "Glm4MoeForCausalLM":
        return list(layers[config.first_k_dense_replace :])
    return [layer for layer in layers if layer not in config.mlp_only_layers]


def _spacing(sparse: list[int], n_layer: int, place: str) -> tuple[int, int]:
    """(moe_every, first_k_dense_replace) that give just these MoE layers."""
    if not sparse:
        return 1, 0
    for every in range(1, n_layer + 1):
        for first in range(n_layer):
            if sparse == [i for i in range(first, n_layer) if (i + 1) % every == 0]:
                return every, first
    raise UserError(f"{place}: MoE layers {sparse}; only every n-th layer after the first k is supported here")


def names(model: params.Model) -> dict[str, str]:
    """litgpt's name → the stock name on disk, of every weight that both have.

    litgpt's joined `attn.qkv.weight` stands here as `attn.{q,k,v}.weight`; see `split_qkv` and `join_qkv`.
    """
    stock = stock_class(model)
    shared = "shared_expert" if stock == "Qwen2MoeForCausalLM" else "shared_experts"
    expert_parts = ("w1", "w3", "w2") if stock == "MixtralForCausalLM" else ("gate_proj", "up_proj", "down_proj")
    found = {"transformer.wte.weight": "model.embed_tokens.weight", "transformer.ln_f.weight": "model.norm.weight"}
    if not model.tie_embeddings:
        found["lm_head.weight"] = "lm_head.weight"
    for layer in range(model.n_layer):
        ours, theirs = f"transformer.h.{layer}", f"model.layers.{layer}"
        found[f"{ours}.norm_1.weight"] = f"{theirs}.input_layernorm.weight"
        found[f"{ours}.norm_2.weight"] = f"{theirs}.post_attention_layernorm.weight"
        found[f"{ours}.attn.proj.weight"] = f"{theirs}.self_attn.o_proj.weight"
        for part in "qkv":
            found[f"{ours}.attn.{part}.weight"] = f"{theirs}.self_attn.{part}_proj.weight"
        for part in "qk" if model.norm_qk else "":
            found[f"{ours}.attn.norm_{part}.weight"] = f"{theirs}.self_attn.{part}_norm.weight"
        ours += ".mlp"
        if stock in _DENSE or layer not in moe_layers(model):
            found |= _mlp(ours, f"{theirs}.mlp", ("gate_proj", "up_proj", "down_proj"))
            continue
        theirs += ".block_sparse_moe" if stock == "MixtralForCausalLM" else ".mlp"
        found[f"{ours}.gate.weight"] = f"{theirs}.gate.weight"
        if model.router == "sigmoid":
            found[f"{ours}.{_BIAS}"] = f"{theirs}.{_BIAS}"
        for expert in range(model.n_expert):
            found |= _mlp(f"{ours}.experts.{expert}", f"{theirs}.experts.{expert}", expert_parts)
        if model.n_shared_expert:
            found |= _mlp(f"{ours}.shared_experts", f"{theirs}.{shared}", ("gate_proj", "up_proj", "down_proj"))
    return found


def _mlp(ours: str, theirs: str, parts: tuple[str, str, str]) -> dict[str, str]:
    pairs = zip(("fc_1", "fc_2", "proj"), parts, strict=True)
    return {f"{ours}.{a}.weight": f"{theirs}.{b}.weight" for a, b in pairs}


def to_stock(state: State, model: params.Model, vocab_size: int, dtype: torch.dtype) -> State:
    """Weights under litgpt's names → under the stock class's, in `dtype`.

    Rows of the embedding beyond `vocab_size` (padding) are left out, so that no sampler can draw them; the logits
    of real tokens do not depend on them. A balancing bias stays in float32, as transformers keeps it.
    """
    state = split_qkv(state, model)
    wanted = names(model)
    odd = sorted((wanted.keys() ^ state.keys()) - ({"lm_head.weight"} if model.tie_embeddings else set()))
    if odd:
        raise UserError(f"weights that do not fit the model's parameters: {', '.join(odd[:5])} ({len(odd)} in all)")
    stock: State = {}
    for ours, theirs in wanted.items():
        weight = state[ours]
        if ours in ("transformer.wte.weight", "lm_head.weight"):
            weight = weight[:vocab_size]
        if _doubled(ours, model):
            weight = weight * 2
        kept = torch.float32 if ours.endswith(_BIAS) else dtype
        # a copy, as safetensors takes no views
        stock[theirs] = weight.to("cpu", kept, copy=True, memory_format=torch.contiguous_format)
    return stock | {name: torch.zeros(shape, dtype=dtype) for name, shape in neutral(model).items()}


def from_stock(stock: State, model: params.Model) -> State:
    """The inverse of `to_stock`; UserError where a weight is missing, or one is there that we have no place for."""
    wanted, zero = names(model), neutral(model)
    odd = sorted(stock.keys() ^ {*wanted.values(), *zero})
    odd = [name for name in odd if name != "lm_head.weight" or not model.tie_embeddings]
    if odd:
        kind = "missing" if odd[0] not in stock else "not known"
        raise UserError(f"weights do not fit {stock_class(model)}: {odd[0]} is {kind} ({len(odd)} such in all)")
    for name in zero:
        if torch.count_nonzero(stock[name]):
            raise UserError(f"{name} is not zero: a gated shared expert is something that our models do not have")
    state = {o: stock[t] / 2 if _doubled(o, model) else stock[t] for o, t in wanted.items()}
    if model.tie_embeddings:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    return join_qkv(state, model)


def neutral(model: params.Model) -> dict[str, tuple[int, ...]]:
    """Stock name → shape of weights that our models do not have and that are zero, or empty, in an export."""
    absent: dict[str, tuple[int, ...]] = {}
    if stock_class(model) not in ("Qwen2MoeForCausalLM", "Glm4MoeForCausalLM"):
        return absent
    shared = "shared_expert" if stock_class(model) == "Qwen2MoeForCausalLM" else "shared_experts"
    for layer in moe_layers(model):
        mlp = f"model.layers.{layer}.mlp"
        if stock_class(model) == "Qwen2MoeForCausalLM":
            absent[f"{mlp}.shared_expert_gate.weight"] = (1, model.n_embd)
        if not model.n_shared_expert:
            absent[f"{mlp}.{shared}.gate_proj.weight"] = (0, model.n_embd)
            absent[f"{mlp}.{shared}.up_proj.weight"] = (0, model.n_embd)
            absent[f"{mlp}.{shared}.down_proj.weight"] = (model.n_embd, 0)
    return absent


def _doubled(ours: str, model: params.Model) -> bool:
    return stock_class(model) == "Qwen2MoeForCausalLM" and ours.endswith("shared_experts.proj.weight")


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
    joined = {
        name: weight for name, weight in state.items() if not name.endswith(tuple(f".attn.{p}.weight" for p in "qkv"))
    }
    for layer in range(model.n_layer):
        name = f"transformer.h.{layer}.attn"
        joined[f"{name}.qkv.weight"] = torch.cat([state[f"{name}.{part}.weight"] for part in "qkv"])
    return joined
