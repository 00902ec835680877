"""Qwen2-MoE: shared experts and dense layers with a softmax router.

The class gates its shared expert by sigmoid(x·g): g is zero here and the down-projection doubled (½ · 2w, exact in
binary). Biases on q, k and v are written too, as zeros: programs that read this class take them to be there.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.errors import UserError
from pipeline.huggingface.qwen3_moe import Qwen3Moe
from pipeline.model.layout import moe_layers

if TYPE_CHECKING:
    from pipeline.params import Model


class Qwen2Moe(Qwen3Moe):
    name, gguf = "Qwen2MoeForCausalLM", "qwen2moe"
    only: ClassVar = {"norm_qk": False, "router": "softmax", "routed_scaling_factor": 1.0}
    gguf_only: ClassVar = Qwen3Moe.gguf_only | {"norm_topk_prob": False, "head_size": None}
    shared = "shared_expert"

    def config(self, model: "Model", vocab_size: int) -> dict[str, Any]:
        width = max(1, model.n_shared_expert) * model.moe_intermediate_size
        return super().config(model, vocab_size) | {"qkv_bias": True, "shared_expert_intermediate_size": width}

    def fields(self, config: Any, place: str) -> dict[str, Any]:
        width, of_one = config.shared_expert_intermediate_size, config.moe_intermediate_size
        if width % of_one:
            raise UserError(
                f"{place}: shared_expert_intermediate_size = {width}; "
                f"allowed: multiples of moe_intermediate_size = {of_one}"
            )
        return super().fields(config, place) | {"n_shared_expert": width // of_one}

    def zero_filled(self, model: "Model") -> dict[str, tuple[int, ...]]:
        absent = super().zero_filled(model)
        for layer in moe_layers(model):
            absent[f"model.layers.{layer}.mlp.shared_expert_gate.weight"] = (1, model.n_embd)
        head_size = model.head_size or model.n_embd // model.n_head
        for layer in range(model.n_layer):
            for part, heads in (("q", model.n_head), ("k", model.n_query_groups), ("v", model.n_query_groups)):
                absent[f"model.layers.{layer}.self_attn.{part}_proj.bias"] = (heads * head_size,)
        return absent

    def scale(self, name: str) -> float:
        return 2.0 if name.endswith("shared_experts.proj.weight") else 1.0
