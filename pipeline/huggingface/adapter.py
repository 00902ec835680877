"""How a model of ours is written for one transformers class and read back: what all classes share with Llama.

    adapter = classes.adapter_of(params.model); adapter.config(model, vocab_size); adapter.names(model)

A class has one small module here that says where it differs, and one line in pipeline/huggingface/classes.py. Neither
torch nor transformers is imported, so that checking the parameters stays quick; tensors are moved in weights.py.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.errors import UserError
from pipeline.model.layout import moe_layers

if TYPE_CHECKING:
    from pipeline.params import Model

BIAS = "gate.e_score_correction_bias"  # of a sigmoid router, in litgpt's names and in transformers'
GATED = ("gate_proj", "up_proj", "down_proj")  # the matrices of a gated MLP: litgpt's fc_1, fc_2, proj
_ROPE = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_block_size": "original_max_position_embeddings",
}
_ABSENT: dict[str, Any] = {  # what a class has that does not speak of it
    "padding_multiple": 1,
    "norm_qk": False,
    "n_expert": 0,
    "n_expert_per_token": 0,
    "moe_intermediate_size": 1,
    "n_shared_expert": 0,
    "moe_every": 1,
    "first_k_dense_replace": 0,
    "router": "softmax",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "dense_baseline": "none",
}
_FOREIGN: dict[str, tuple[Any, ...]] = {  # what a configuration can say beyond our models → what we have
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "decoder_sparse_step": (1, None),
    "n_group": (1, None),
    "topk_group": (1, None),
    "quantization_config": (None,),
    "pretraining_tp": (1, None),
}


class Adapter:
    """One transformers class. The attributes are its table; the methods are overridden where a table does not do."""

    name: ClassVar[str]  # the class in transformers
    gguf: ClassVar[str | None] = None  # the architecture in llama.cpp, if there is one
    only: ClassVar[dict[str, Any]] = {}  # what a field of params.Model must be for the class to compute the model
    gguf_only: ClassVar[dict[str, Any]] = {}  # and for llama.cpp besides
    settings: ClassVar[dict[str, str]] = {  # field of params.Model → its key in config.json
        "n_layer": "num_hidden_layers",
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "head_size": "head_dim",
        "n_query_groups": "num_key_value_heads",
        "block_size": "max_position_embeddings",
        "norm_eps": "rms_norm_eps",
        "tie_embeddings": "tie_word_embeddings",
        "intermediate_size": "intermediate_size",
    }
    mlp: ClassVar[str] = "mlp"  # where a MoE layer's weights are
    expert: ClassVar[tuple[str, str, str]] = GATED
    shared: ClassVar[str | None] = None  # the shared expert's name, of a class that always has one

    def misfits(self, model: "Model") -> dict[str, Any]:
        """What keeps the class from computing this model: field → what it would have to be; {} if nothing."""
        return different(model, self.only)

    def config(self, model: "Model", vocab_size: int) -> dict[str, Any]:
        """config.json's settings, for a model as it is built (a dense baseline resolved)."""
        model = model.model_copy(update={"head_size": model.head_size or model.n_embd // model.n_head})
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(model.rope_base)}
        if scaling := model.rope_scaling:
            rope |= {"rope_type": "llama3"} | {theirs: getattr(scaling, ours) for ours, theirs in _ROPE.items()}
        written = {theirs: getattr(model, ours) for ours, theirs in self.settings.items()}
        return written | {"vocab_size": vocab_size, "rope_parameters": rope}

    def older(self, config: dict[str, Any]) -> dict[str, Any]:
        """The keys that transformers 4 and mlx-lm read where version 5 writes others."""
        rope = dict(config["rope_parameters"])
        theta = rope.pop("rope_theta")
        return config | {"rope_theta": theta, "rope_scaling": rope if rope["rope_type"] != "default" else None}

    def fields(self, config: Any, place: str) -> dict[str, Any]:
        """The inverse of `config`: fields of params.Model. UserError, naming the setting, for what ours do not have."""
        _refuse_foreign_settings(config, place)
        rope = config.rope_parameters
        scaling = {ours: rope[theirs] for ours, theirs in _ROPE.items()} if rope["rope_type"] == "llama3" else None
        read = {ours: getattr(config, theirs, None) for ours, theirs in self.settings.items()}
        read["head_size"] = read["head_size"] or config.hidden_size // config.num_attention_heads
        read |= {"vocab_size": config.vocab_size, "rope_base": rope["rope_theta"], "rope_scaling": scaling}
        return _ABSENT | self.only | read

    def names(self, model: "Model") -> dict[str, str]:
        """litgpt's name → the name on disk, of every weight that both have.

        litgpt's joined `attn.qkv.weight` is `attn.{q,k,v}.weight` here; see `split_qkv` and `join_qkv` in weights.py.
        """
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
            if layer not in moe_layers(model):
                found |= _mlp(f"{ours}.mlp", f"{theirs}.mlp", GATED)
                continue
            ours, theirs = f"{ours}.mlp", f"{theirs}.{self.mlp}"
            found[f"{ours}.gate.weight"] = f"{theirs}.gate.weight"
            if model.router == "sigmoid":
                found[f"{ours}.{BIAS}"] = f"{theirs}.{BIAS}"
            for expert in range(model.n_expert):
                found |= _mlp(f"{ours}.experts.{expert}", f"{theirs}.experts.{expert}", self.expert)
            if model.n_shared_expert:
                found |= _mlp(f"{ours}.shared_experts", f"{theirs}.{self.shared}", GATED)
        return found

    def zero_filled(self, model: "Model") -> dict[str, tuple[int, ...]]:
        """Name on disk → shape of weights that the class has and our model has not: zero in an export.

        A shared expert is so written at the width of one expert, since other programs refuse one of width 0.
        """
        width, n_embd = model.moe_intermediate_size, model.n_embd
        return {
            f"model.layers.{layer}.{self.mlp}.{self.shared}.{part}.weight": shape
            for layer in (moe_layers(model) if self.shared and not model.n_shared_expert else [])
            for part, shape in zip(GATED, ((width, n_embd), (width, n_embd), (n_embd, width)), strict=True)
        }

    def scale(self, name: str) -> float:
        """What the weight under litgpt's `name` is multiplied by on disk (a power of two, so that nothing rounds)."""
        return 1.0


def different(model: "Model", wanted: dict[str, Any]) -> dict[str, Any]:
    """Of the wanted fields, those that the model has otherwise."""
    plain = model.head_size is not None and model.head_size * model.n_head == model.n_embd
    given = model.model_copy(update={"head_size": None}) if plain else model  # as null says it
    return {field: value for field, value in wanted.items() if getattr(given, field) != value}


def _mlp(ours: str, theirs: str, parts: tuple[str, str, str]) -> dict[str, str]:
    pairs = zip(("fc_1", "fc_2", "proj"), parts, strict=True)
    return {f"{ours}.{a}.weight": f"{theirs}.{b}.weight" for a, b in pairs}


def _refuse_foreign_settings(config: Any, place: str) -> None:
    for setting, allowed in _FOREIGN.items():
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
