"""A litgpt GPT from params.Model, with our expert layer put in: mixed dense and MoE, dense baselines, document masking.

    model = build(params.model, vocab_size); logits_BTV = model(idx_BT)
    on_meta(params.model, vocab_size)              # nothing is allocated

Checkpoint folders are in pipeline/model/checkpoint_folder.py; counting is in size.py.

Legend: B batch, T time, C embedding, V padded vocabulary.
"""

import copy
import hashlib

import torch
from litgpt.config import Config
from litgpt.model import GPT
from torch import Tensor

from pipeline.model import blocks, size
from pipeline.model.layout import moe_layers
from pipeline.model.moe import MoE
from pipeline.params import Model


def config(model: Model, vocab_size: int) -> Config:
    """litgpt's config of the model, or of its dense baseline if asked for, for a tokenizer of `vocab_size` tokens."""
    model = size.resolved(model, vocab_size)
    moe = bool(moe_layers(model))
    sigmoid = moe and model.router == "sigmoid"
    scaling = model.rope_scaling
    return Config(
        # what litgpt convert_from_litgpt goes by; no name that litgpt has a chat template for
        name=("qwen3" if model.norm_qk else "llama") + ("-moe" if moe else ""),
        block_size=model.block_size,
        vocab_size=size.n_rows(model, vocab_size),
        padding_multiple=model.padding_multiple,
        n_layer=model.n_layer,
        n_embd=model.n_embd,
        n_head=model.n_head,
        head_size=model.head_size,
        n_query_groups=model.n_query_groups,
        norm_class_name="RMSNorm",
        norm_eps=model.norm_eps,
        norm_qk=model.norm_qk,
        parallel_residual=False,
        bias=False,
        rotary_percentage=1.0,
        rope_base=model.rope_base,
        rope_adjustments=None
        if scaling is None
        else {
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_seq_len": scaling.original_block_size,
        },
        intermediate_size=model.intermediate_size,
        mlp_class_name="LLaMAMoE" if moe else "LLaMAMLP",
        moe_intermediate_size=model.moe_intermediate_size if moe else None,
        n_expert=model.n_expert if moe else 0,
        n_expert_per_token=model.n_expert_per_token if moe else 0,
        n_shared_expert=(model.n_shared_expert or None) if moe else None,
        first_k_dense_replace=(model.first_k_dense_replace or None) if moe else None,
        routed_scaling_factor=model.routed_scaling_factor if moe else 1.0,
        norm_topk_prob=model.norm_topk_prob,
        # litgpt's sigmoid router chooses groups of experts first; one expert a group and all groups is no choice
        n_expert_groups=model.n_expert if sigmoid else None,
        n_topk_groups=model.n_expert if sigmoid else None,
        n_topk_scores_per_group=1 if sigmoid else None,
    )


class MoEGPT(GPT):
    """litgpt's GPT with `MoE` in the layers that hold experts, and a `hidden` that masks documents."""

    in_bfloat16 = False  # how its head multiplies
    with_kernels = False  # of pipeline/model/cpu_kernels.py, for the loss

    def __init__(self, config: Config, model: Model) -> None:
        plain = copy.copy(config)
        plain.mlp_class_name = "LLaMAMLP"  # litgpt's experts, replaced below, are a module each: seconds for thousands
        super().__init__(plain)
        self.config, self.params = config, model
        blocks.put_in(self, config)
        for i, block in enumerate(self.transformer.h):
            block.mlp = MoE(config, model.norm_topk_prob) if i in moe_layers(model) else blocks.MLP(config)
        self.tie_weights()

    def tie_weights(self) -> None:
        if self.params.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def hidden(self, idx_BT: Tensor, position_BT: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """What the head multiplies: [B, T, C] after the last norm.

        `position_BT` and `mask` as `documents` makes them; without them one causal sequence each row.
        """
        if idx_BT.size(1) > self.max_seq_length:
            raise ValueError(f"{idx_BT.size(1)} tokens; at most max_seq_length = {self.max_seq_length}")
        if position_BT is None:
            cos, sin = (self.cos[None, : idx_BT.size(1)], self.sin[None, : idx_BT.size(1)])
        else:
            cos, sin = self.cos[position_BT], self.sin[position_BT]
        x_BTC = self.transformer.wte(idx_BT)
        for block in self.transformer.h:
            x_BTC = block(x_BTC, cos, sin, mask)
        return self.transformer.ln_f(x_BTC)


def documents(idx_BT: Tensor, eos_id: int) -> tuple[Tensor, Tensor]:
    """`apart` for documents that end with the EOS token."""
    begins_BT = torch.ones_like(idx_BT, dtype=torch.bool)
    begins_BT[:, 1:] = idx_BT[:, :-1] == eos_id
    return apart(begins_BT)


def apart(begins_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Positions that restart where a document begins [B, T], and what keeps attention within documents.

    That is who may attend to whom (`may_attend`); on a CPU, which attends to one document at a time, where each token's
    document begins [B, T].
    """
    place_T = torch.arange(begins_BT.size(1), device=begins_BT.device)
    begin_BT = torch.where(begins_BT, place_T, 0).cummax(1).values
    return place_T - begin_BT, begin_BT if begins_BT.device.type == "cpu" else may_attend(begin_BT)


def may_attend(begin_BT: Tensor) -> Tensor:
    """[B, 1, T, T] of bool: a token attends to itself and to earlier ones of its document, which begins there."""
    place_T = torch.arange(begin_BT.size(1), device=begin_BT.device)
    same = begin_BT[:, :, None] == begin_BT[:, None, :]
    return (same & (place_T[:, None] >= place_T)).unsqueeze(1)


# --- building ---------------------------------------------------------------------------------------------------------


def build(
    model: Model,
    vocab_size: int,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> MoEGPT:
    """A model initialized at random: the same for the same seed on every device (drawn on the CPU, in float32)."""
    gpt = materialize(on_meta(model, vocab_size, dtype), device)
    _initialize(gpt, seed)
    return gpt


def on_meta(model: Model, vocab_size: int, dtype: torch.dtype | None = None) -> MoEGPT:
    """The model without memory behind its weights."""
    model = size.resolved(model, vocab_size)
    with torch.device("meta"):
        gpt = MoEGPT(config(model, vocab_size), model)
    return gpt if dtype is None else _cast(gpt, dtype)


def materialize(gpt: MoEGPT, device: torch.device | str | None = None) -> MoEGPT:
    """Give a model on the meta device memory, its weights unset; buffers get their values."""
    gpt.to_empty(device=device or "cpu")
    gpt.tie_weights()  # to_empty parts shared weights
    gpt.reset_parameters()  # of a litgpt GPT: the rotary tables
    for name, buffer in gpt.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.zero_()
    return gpt


def _cast(gpt: MoEGPT, dtype: torch.dtype) -> MoEGPT:
    for parameter in gpt.parameters():  # buffers (rotary tables, the router's bias) stay in float32
        parameter.data = parameter.data.to(dtype)
    return gpt


@torch.no_grad()
def _initialize(gpt: MoEGPT, seed: int) -> None:
    """Normal, of the spread that keeps activations at about one: 1/sqrt(inputs), and 1/sqrt(C) for the embedding.

    What adds to the residual begins at a tenth of that, so that each block at first passes on what it gets; what was
    measured is in docs/benchmarks.md. Each weight has a stream of its own, named after it, so that a dense baseline
    shares those it has.
    """
    for name, parameter in gpt.named_parameters():
        if "norm" in name or "ln_f" in name:
            parameter.fill_(1.0)
            continue
        to_residual = name.endswith(("proj.weight", "down_ECI"))
        std = parameter.size(-1) ** -0.5 * (0.1 if to_residual else 1.0)
        stream = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little", signed=True)
        generator = torch.Generator().manual_seed(stream)
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
