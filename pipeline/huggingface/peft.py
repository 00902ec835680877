"""A LoRA adapter in PEFT's format: adapter_config.json and adapter_model.safetensors, for the exported model.

    write(folder, factors, gpt.params, vocab_size, rank=8, alpha=16.0, dropout=0.0)

Linear layers are PEFT's `target_modules`. Experts and routers, which transformers 5 holds as bare parameters, are its
`target_parameters`, and so is what stands beside experts (PEFT 0.21).

Legend: E experts, J rows of a weight, C columns of a weight, r rank.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from pipeline.files import written_whole
from pipeline.huggingface.classes import adapter_of
from pipeline.model.layout import moe_layers
from pipeline.params import Model

_STACKED = {"gate_up_EJC": "gate_up_proj", "down_ECI": "down_proj"}  # where our experts are → transformers' parameter


class Factors(NamedTuple):
    """What is added to a weight is alpha / rank · B A."""

    weight: str  # litgpt's name of it, or the stacked experts' own
    A: Tensor  # [r, C], or of each expert [E, r, C]
    B: Tensor  # [J, r] or [E, J, r]


def write(
    folder: Path, factors: list[Factors], model: Model, vocab_size: int, rank: int, alpha: float, dropout: float
) -> None:
    """Write the adapter of a model that was exported for transformers; an earlier one is replaced when this is whole.

    litgpt's joined `attn.qkv.weight` must come as `attn.{q,k,v}.weight`. Rows of the head beyond `vocab_size`, which
    the export has not, are left out.
    """
    adapter = adapter_of(model)
    names = adapter.names(model)
    state: dict[str, Tensor] = {}
    modules, parameters = [], []
    for weight, a, b in factors:
        stacked = _STACKED.get(weight.rpartition(".")[2])
        if stacked:
            module = f"model.layers.{weight.split('.')[2]}.mlp.experts"
            inner = ".base_layer" if stacked == "gate_up_proj" else ""  # PEFT puts down_proj's wrapper around it
            parameters.append(f"{module}.{stacked}")
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)  # PEFT's rows are E·r, its columns r·E
            state |= _named(f"{module}{inner}", a, b)
        elif weight.endswith("mlp.gate.weight"):
            module = f"model.layers.{weight.split('.')[2]}.mlp.gate"
            parameters.append(f"{module}.weight")
            state |= _named(module, a, b)
        else:
            module = names[weight].removesuffix(".weight")
            if ".mlp." in weight and moe_layers(model):  # as modules, PEFT would take gate_proj for the experts'
                parameters.append(f"{module}.weight")
            else:
                modules.append(module)
            rows = b[:vocab_size] if weight == "lm_head.weight" else b
            state |= _named(module, a, rows * adapter.scale(weight))
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0 if parameters else dropout,  # PEFT refuses it beside parameters
        "bias": "none",
        "target_modules": modules,
        "target_parameters": parameters or None,
        "inference_mode": True,
    }
    with written_whole(folder) as partial:
        partial.mkdir()
        save_file({name: tensor.detach().cpu().clone() for name, tensor in state.items()}, partial / _WEIGHTS)
        (partial / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def _named(module: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    prefix = f"base_model.model.{module}"
    return {f"{prefix}.lora_A.weight": a.contiguous(), f"{prefix}.lora_B.weight": b.contiguous()}
