"""Section `model`: the architecture."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.huggingface.classes import adapter_of
from pipeline.model.layout import moe_layers
from pipeline.params.section import Section

# Bounds beyond any model that was trained, which keep counting quick and sizes within 64 bits.
Layers = Annotated[int, Field(ge=1, le=1000)]
Heads = Annotated[int, Field(ge=1, le=4096)]
Experts = Annotated[int, Field(ge=0, le=65_536)]
Width = Annotated[int, Field(ge=1, le=2**20)]
Tokens = Annotated[int, Field(ge=1, le=2**24)]
Factor = Annotated[float, Field(gt=0, le=1e6)]


class RopeScaling(Section):
    """Llama 3's stretching of low rotary frequencies (arXiv 2407.21783)."""

    factor: Annotated[float, Field(ge=1, le=1e6)]
    low_freq_factor: Factor
    high_freq_factor: Factor
    original_block_size: Tokens


class Model(Section):
    vocab_size: Tokens | None = Field(description="rows of the embedding; null: as many as the tokenizer has")
    padding_multiple: Width = Field(description="the embedding is padded to a multiple of this")
    block_size: Tokens = Field(description="longest context, tokens")
    n_layer: Layers
    n_embd: Width
    n_head: Heads
    head_size: Width | None = Field(description="null: n_embd / n_head")
    n_query_groups: Heads = Field(description="key/value heads: n_head is MHA, 1 is MQA, between is GQA")
    norm_qk: bool = Field(description="RMSNorm on queries and keys, per head")
    norm_eps: Annotated[float, Field(gt=0, le=1)]
    tie_embeddings: bool
    rope_base: Annotated[int, Field(ge=1, le=10**12)]
    rope_scaling: RopeScaling | None
    intermediate_size: Width = Field(description="width of a dense layer's MLP")
    n_expert: Experts = Field(description="experts in a MoE layer; 0: a dense model")
    n_expert_per_token: Experts = Field(description="experts that each token is routed to")
    moe_intermediate_size: Width = Field(description="width of one expert")
    n_shared_expert: Annotated[int, Field(ge=0, le=1000)] = Field(
        description="experts that every token goes through besides"
    )
    moe_every: Layers = Field(description="every n-th layer is MoE (2: layers 2, 4, 6, …)")
    first_k_dense_replace: Annotated[int, Field(ge=0, le=1000)] = Field(description="the first k layers are dense")
    router: Literal["softmax", "sigmoid"] = Field(description="softmax top-k, or sigmoid with a balancing bias")
    norm_topk_prob: bool = Field(description="the weights of a token's experts sum to one")
    routed_scaling_factor: Factor
    dense_baseline: Literal["none", "active", "total"] = Field(
        description="train the dense model with the same active or total parameters instead"
    )

    @field_validator("n_query_groups")
    @classmethod
    def _groups_divide(cls, groups: int, info: Any) -> int:
        n_head = info.data.get("n_head")
        if n_head and n_head % groups:
            raise ValueError(f"must divide n_head = {n_head}; allowed: {_divisors(n_head)}")
        return groups

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.head_size is None and self.n_embd % self.n_head:
            raise ValueError(
                f"n_head: {self.n_head} does not divide n_embd = {self.n_embd}; "
                f"allowed: {_divisors(self.n_embd)} (or set head_size)"
            )
        if self.n_expert and not 1 <= self.n_expert_per_token <= self.n_expert:
            raise ValueError(f"n_expert_per_token: {self.n_expert_per_token}; allowed: 1 to n_expert = {self.n_expert}")
        if self.n_expert and self.moe_every > self.n_layer:
            raise ValueError(f"moe_every: {self.moe_every} leaves no MoE layer; allowed: 1 to n_layer = {self.n_layer}")
        if self.n_expert and not moe_layers(self):
            raise ValueError(
                f"first_k_dense_replace: {self.first_k_dense_replace} leaves no MoE layer among {self.n_layer}"
            )
        if (self.head_size or self.n_embd // self.n_head) % 2:
            raise ValueError("head_size: must be even for rotary embeddings")
        return self

    @model_validator(mode="after")
    def _exportable(self) -> Self:
        adapter_of(self)  # raises where no class fits
        return self


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
