"""Which transformers class, and which architecture of llama.cpp, computes a model.

Imports neither torch nor transformers, so that checking the parameters stays quick.
"""

from typing import TYPE_CHECKING

from pipeline.model.layout import moe_layers

if TYPE_CHECKING:
    from pipeline.params import Model


def stock_class(model: "Model") -> str:
    """Name of the transformers class that represents this model exactly; ValueError where there is none."""
    if not model.n_expert or model.dense_baseline != "none":
        return "Qwen3ForCausalLM" if model.norm_qk else "LlamaForCausalLM"
    if model.router == "sigmoid":
        if model.n_expert < 2:
            raise ValueError("n_expert: router: sigmoid needs at least 2 to be exported")
        if moe_layers(model) != list(range(moe_layers(model)[0], model.n_layer)):
            raise ValueError(
                f"moe_every: {model.moe_every} with router: sigmoid is no class of transformers that this project "
                "exports to; take moe_every: 1 (first_k_dense_replace gives dense layers) or router: softmax"
            )
        return "Glm4MoeForCausalLM"
    if model.routed_scaling_factor != 1:
        raise ValueError(
            f"routed_scaling_factor: {model.routed_scaling_factor} with router: softmax cannot be exported; "
            "take 1.0, or router: sigmoid"
        )
    if model.norm_qk and model.n_shared_expert:
        raise ValueError(
            f"n_shared_expert: {model.n_shared_expert} with norm_qk and router: softmax cannot be exported; "
            "take 0, or norm_qk: false, or router: sigmoid"
        )
    if model.norm_qk:
        return "Qwen3MoeForCausalLM"
    plain = len(moe_layers(model)) == model.n_layer and not model.n_shared_expert and model.norm_topk_prob
    return "MixtralForCausalLM" if plain else "Qwen2MoeForCausalLM"


def gguf_architecture(model: "Model") -> str:
    """Name of the architecture of llama.cpp that computes this model; ValueError where there is none.

    What each can do stands in llama.cpp's src/models/{llama,qwen3,qwen2moe,qwen3moe}.cpp.
    """
    stock = stock_class(model)
    if stock == "Glm4MoeForCausalLM":
        raise ValueError("router: sigmoid has no GGUF form in this project; take softmax, or export.gguf: []")
    architecture = {
        "LlamaForCausalLM": "llama",
        "Qwen3ForCausalLM": "qwen3",
        "MixtralForCausalLM": "llama",
        "Qwen2MoeForCausalLM": "qwen2moe",
        "Qwen3MoeForCausalLM": "qwen3moe",
    }[stock]
    if architecture != "llama" and model.rope_scaling:
        raise ValueError(f"rope_scaling: llama.cpp has none for {architecture}; take null, or export.gguf: []")
    if architecture.endswith("moe") and len(moe_layers(model)) < model.n_layer:
        raise ValueError(
            f"moe_every: llama.cpp has no dense layers in {architecture}; take moe_every: 1 and "
            "first_k_dense_replace: 0, or export.gguf: []"
        )
    if architecture.endswith("moe") and model.norm_topk_prob != (architecture == "qwen3moe"):
        raise ValueError(
            f"norm_topk_prob: llama.cpp's {architecture} has {str(not model.norm_topk_prob).lower()}; "
            "take that, or export.gguf: []"
        )
    if architecture == "qwen2moe" and not model.n_shared_expert:
        raise ValueError("n_shared_expert: llama.cpp's qwen2moe needs one; or set export.gguf: []")
    if architecture == "qwen2moe" and (model.head_size or 0) * model.n_head not in (0, model.n_embd):
        raise ValueError("head_size: llama.cpp's qwen2moe has n_embd / n_head; take null, or export.gguf: []")
    return architecture
