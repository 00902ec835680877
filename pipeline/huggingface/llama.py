"""Llama: a dense model."""

from typing import ClassVar

from pipeline.huggingface.adapter import Adapter


class Llama(Adapter):
    name, gguf = "LlamaForCausalLM", "llama"
    only: ClassVar = {"n_expert": 0, "norm_qk": False}
