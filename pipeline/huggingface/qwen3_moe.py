"""Qwen3-MoE: QK-norm, softmax top-k, dense layers anywhere."""

from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.errors import UserError
from pipeline.huggingface.adapter import Adapter
from pipeline.model.layout import moe_layers

if TYPE_CHECKING:
    from pipeline.params import Model


class Qwen3Moe(Adapter):
    name, gguf = "Qwen3MoeForCausalLM", "qwen3moe"
    only: ClassVar = {"norm_qk": True, "router": "softmax", "routed_scaling_factor": 1.0, "n_shared_expert": 0}
    gguf_only: ClassVar = {"rope_scaling": None, "moe_every": 1, "first_k_dense_replace": 0, "norm_topk_prob": True}
    settings: ClassVar = Adapter.settings | {
        "n_expert": "num_experts",
        "n_expert_per_token": "num_experts_per_tok",
        "moe_intermediate_size": "moe_intermediate_size",
        "norm_topk_prob": "norm_topk_prob",
    }

    def config(self, model: "Model", vocab_size: int) -> dict[str, Any]:
        dense = sorted(set(range(model.n_layer)) - set(moe_layers(model)))
        return super().config(model, vocab_size) | {"mlp_only_layers": dense, "decoder_sparse_step": 1}

    def fields(self, config: Any, place: str) -> dict[str, Any]:
        layers = range(config.num_hidden_layers)
        every, first = _spacing([layer for layer in layers if layer not in config.mlp_only_layers], len(layers), place)
        return super().fields(config, place) | {"moe_every": every, "first_k_dense_replace": first}


def _spacing(sparse: list[int], n_layer: int, place: str) -> tuple[int, int]:
    """(moe_every, first_k_dense_replace) that give just these MoE layers."""
    for every in range(1, n_layer + 1):
        for first in range(n_layer):
            if sparse == [i for i in range(first, n_layer) if (i + 1) % every == 0]:
                return every, first
    raise UserError(f"{place}: MoE layers {sparse}; only every n-th layer after the first k is supported here")
