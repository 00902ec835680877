"""Low-rank adaptation (LoRA, arXiv 2106.09685): W + alpha / rank · B A, with W frozen and B zero at the start.

    lora = Lora(params.finetune, folder); lora.put_in(gpt, seed); ...; lora.save(gpt, into, tokenizer)

Linear layers get litgpt's modules. Stacked experts, the router and the head, which litgpt has none for, get the sum of
both as their weight, by torch's parametrization. merge(gpt) makes a plain model of it.

Legend: E experts, J rows of a weight, C columns of a weight, r rank.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from litgpt.lora import LoRALinear, LoRAQKVLinear
from litgpt.model import LLaMAMLP
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipeline import hashing
from pipeline.errors import UserError
from pipeline.huggingface import peft
from pipeline.model import checkpoint_folder
from pipeline.model.build import MoEGPT
from pipeline.model.moe import MoE
from pipeline.params import Finetune
from pipeline.tokens import tokenizer as vocabulary

_WHY_NOT = {
    "head": "its head is its embedding",
    "router": "it has no softmax router, and PEFT cannot put an adapter beside another",
}
_DECIDES = ("method", "rank", "alpha", "dropout", "targets")


class LowRank(nn.Module):
    """The parametrization W + scale · B A of a weight [J, C], or of each expert's of [E, J, C]."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        *experts, rows, columns = weight.shape
        like: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        self.lora_A = nn.Parameter(torch.empty(*experts, rank, columns, **like))
        self.lora_B = nn.Parameter(torch.empty(*experts, rows, rank, **like))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        add = torch.addmm if weight.dim() == 2 else torch.baddbmm
        return add(weight, self.lora_B, self.lora_A, alpha=self.scale)


class Lora:
    """What `pipeline.train.loop.train` takes as its adapter."""

    def __init__(self, finetune: Finetune, adapter: Path) -> None:
        """`adapter`: the folder that `save` writes the adapter to, in PEFT's format."""
        self._finetune, self._adapter = finetune, adapter
        self.identity: dict[str, Any] = {f"finetune.{name}": getattr(finetune, name) for name in _DECIDES}
        self.identity["finetune.code"] = hashing.file_sha256(Path(__file__))

    def put_in(self, gpt: MoEGPT, seed: int) -> None:
        """Freeze the weights and put A and B beside those of `targets`; also on the meta device.

        A is drawn uniformly from ±1 / sqrt(C), as PEFT and litgpt do, on the CPU: the same for a seed everywhere.
        Raises UserError for a target that the model does not have.
        """
        gpt.requires_grad_(False)
        for target in self._finetune.targets:
            if not self._put_beside(target, gpt):
                why = _WHY_NOT.get(target, "it has none")
                raise UserError(f"finetune.targets: {target} does not fit this model ({why}); take it out")
        for name, parameter in gpt.named_parameters():
            if name.endswith("lora_B"):
                nn.init.zeros_(parameter)
            elif name.endswith("lora_A"):
                parameter.data.copy_(_drawn(parameter, f"{seed}/{name}"))

    def save(self, gpt: MoEGPT, into: Path, tokenizer: Path) -> None:
        """Write the adapter alone in PEFT's format, then the model with the adapter in its weights to `into`."""
        chosen = self._finetune
        vocab_size = vocabulary.vocab_size(tokenizer)
        peft.write(
            self._adapter, factors(gpt), gpt.params, vocab_size, chosen.rank, chosen.alpha, chosen.dropout
        )  # fmt: skip
        merge(gpt)
        checkpoint_folder.save(gpt, into, tokenizer)

    def _put_beside(self, target: str, gpt: MoEGPT) -> bool:
        if target == "head":
            return not gpt.params.tie_embeddings and self._weight(gpt.lm_head, "weight")
        if target == "attention":
            for block in gpt.transformer.h:
                block.attn.qkv = self._qkv(block.attn.qkv, gpt)
                block.attn.proj = self._linear(block.attn.proj)
            return True
        blocks = [block.mlp for block in gpt.transformer.h]
        layers = [layer for layer in blocks if isinstance(layer, MoE)]
        if target == "mlp":
            return self._mlps([layer for layer in blocks if isinstance(layer, LLaMAMLP)])
        if target == "shared_experts":
            return self._mlps([layer.shared_experts for layer in layers if layer.shared_experts is not None])
        if target == "router":
            softmax = [layer.gate for layer in layers if layer.gate.kind == "softmax"]
            return bool(softmax) and all([self._weight(gate, "weight") for gate in softmax])
        return bool(layers) and all([self._weight(layer, name) for layer in layers for name in STACKED])

    def _mlps(self, layers: list[Any]) -> bool:
        for layer in layers:
            for name in ("fc_1", "fc_2", "proj"):
                setattr(layer, name, self._linear(getattr(layer, name)))
        return bool(layers)

    def _weight(self, module: nn.Module, name: str) -> bool:
        weight = getattr(module, name)
        low_rank = LowRank(weight, self._finetune.rank, self._finetune.alpha / self._finetune.rank)
        parametrize.register_parametrization(module, name, low_rank, unsafe=True)  # it keeps the shape
        return True

    def _linear(self, linear: nn.Linear) -> LoRALinear:
        return _around(linear, LoRALinear, self._settings)

    def _qkv(self, linear: nn.Linear, gpt: MoEGPT) -> LoRALinear:
        config = gpt.config
        heads = {"head_size": config.head_size, "n_head": config.n_head, "n_query_groups": config.n_query_groups}
        return _around(linear, LoRAQKVLinear, {**self._settings, **heads, "enable_lora": True})

    @property
    def _settings(self) -> dict[str, Any]:
        chosen = self._finetune
        return {"r": chosen.rank, "lora_alpha": chosen.alpha, "lora_dropout": chosen.dropout, "bias": False}


STACKED = ("gate_up_EJC", "down_ECI")


def _around(linear: nn.Linear, kind: type[LoRALinear], settings: dict[str, Any]) -> LoRALinear:
    with torch.device("meta"):  # what it holds is taken from `linear`, or drawn later
        module = kind(linear.in_features, linear.out_features, **settings)
    weight = linear.weight
    module.linear = linear
    for name in ("lora_A", "lora_B"):
        empty = torch.empty(getattr(module, name).shape, dtype=weight.dtype, device=weight.device)
        setattr(module, name, nn.Parameter(empty))
    return module


def _drawn(parameter: Tensor, stream: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little", signed=True)
    bound = 1 / math.sqrt(parameter.size(-1))
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator).to(parameter)


def factors(gpt: MoEGPT) -> list[peft.Factors]:
    """What was learned, under litgpt's names of the weights that it adds to."""
    found = []
    for name, module in gpt.named_modules():
        if isinstance(module, LoRAQKVLinear):
            parts = module.lora_B.split(module.qkv_shapes)
            for part, a, b in zip("qkv", module.lora_A.chunk(3), parts, strict=True):
                found.append(peft.Factors(f"{name.removesuffix('.qkv')}.{part}.weight", a, b))
        elif isinstance(module, LoRALinear):
            found.append(peft.Factors(f"{name}.weight", module.lora_A, module.lora_B))
        for weight in ("weight", *STACKED):
            if parametrize.is_parametrized(module, weight):
                low_rank = module.parametrizations[weight][0]
                found.append(peft.Factors(f"{name}.{weight}", low_rank.lora_A, low_rank.lora_B))
    return found


def merge(gpt: MoEGPT) -> None:
    """Add what was learned to the weights, in place: a plain model is left, with its usual names."""
    for module in list(gpt.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoRALinear):
                child.merge()
                setattr(module, name, child.linear)
        for name in ("weight", *STACKED):
            if parametrize.is_parametrized(module, name):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
