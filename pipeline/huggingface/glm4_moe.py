"""GLM-4-MoE: the sigmoid router with a balancing bias, shared experts, dense layers first."""

from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.huggingface.adapter import Adapter
from pipeline.model.layout import moe_layers

if TYPE_CHECKING:
    from pipeline.params import Model


class Glm4Moe(Adapter):
    name, gguf = "Glm4MoeForCausalLM", "glm4moe"
    only: ClassVar = {"router": "sigmoid"}
    gguf_only: ClassVar = {"rope_scaling": None}
    settings: ClassVar = Adapter.settings | {
        "norm_qk": "use_qk_norm",
        "n_expert": "n_routed_experts",
        "n_expert_per_token": "num_experts_per_tok",
        "n_shared_expert": "n_shared_experts",
        "moe_intermediate_size": "moe_intermediate_size",
        "first_k_dense_replace": "first_k_dense_replace",
        "norm_topk_prob": "norm_topk_prob",
        "routed_scaling_factor": "routed_scaling_factor",
    }
    shared = "shared_experts"

    def misfits(self, model: "Model") -> dict[str, Any]:
        found = super().misfits(model)
        if model.n_expert < 2:  # litgpt's sigmoid router chooses among groups of experts
            found["n_expert"] = "2 or more"
        if moe_layers(model) != list(range(moe_layers(model)[0], model.n_layer)):
            found["moe_every"] = 1
        return found

    def config(self, model: "Model", vocab_size: int) -> dict[str, Any]:
        model = model.model_copy(
            update={
                "first_k_dense_replace": moe_layers(model)[0],
                "n_shared_expert": max(1, model.n_shared_expert),
            }
        )
        config = super().config(model, vocab_size)
        config["rope_parameters"]["partial_rotary_factor"] = 1.0
        return config | {"partial_rotary_factor": 1.0}
