"""Qwen3: a dense model with RMSNorm on queries and keys."""

from typing import ClassVar

from pipeline.huggingface.adapter import Adapter


class Qwen3(Adapter):
    name, gguf = "Qwen3ForCausalLM", "qwen3"
    only: ClassVar = {"n_expert": 0, "norm_qk": True}
    gguf_only: ClassVar = {"rope_scaling": None}
