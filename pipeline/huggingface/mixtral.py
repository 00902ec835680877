"""Mixtral: experts in every layer, softmax top-k whose weights sum to one. Its one width is the experts'."""

from typing import ClassVar

from pipeline.huggingface.adapter import Adapter


class Mixtral(Adapter):
    name, gguf = "MixtralForCausalLM", "llama"
    only: ClassVar = {
        "norm_qk": False,
        "router": "softmax",
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "n_shared_expert": 0,
        "moe_every": 1,
        "first_k_dense_replace": 0,
    }
    settings: ClassVar = Adapter.settings | {
        "n_expert": "num_local_experts",
        "n_expert_per_token": "num_experts_per_tok",
        "moe_intermediate_size": "intermediate_size",
    }
    mlp, expert = "block_sparse_moe", ("w1", "w3", "w2")
