"""How large a model of params.Model is, and the arithmetic of training it. Imports no torch: planning is quick.

count(params.model, vocab_size).active
resolved(params.model, vocab_size)      # the dense baseline, if the model asks for one
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.model.layout import moe_layers

if TYPE_CHECKING:
    from pipeline.params import Model


@dataclass(frozen=True)
class Count:
    """Parameters of a model, and the arithmetic of training it."""

    total: int  # without `padding`
    active: int  # those that compute for one token: all but the experts it is not routed to
    padding: int  # in rows of the embedding and head that no token has
    matmuls: int  # multiply-adds of one token's forward in weight matrices
    n_layer: int
    attention_width: int  # n_head · head_size

    @property
    def stored(self) -> int:
        """Elements of the weights that a model holds."""
        return self.total + self.padding

    def flops_per_token(self, block_size: int) -> float:
        """Floating point operations of forward and backward, per token, in sequences of `block_size`.

        2 a multiply-add, backward twice the forward. Attention counts the causal half: (block_size + 1) / 2 keys.
        """
        attention = 2 * self.n_layer * self.attention_width * (block_size + 1) / 2
        return 6 * (self.matmuls + attention)


def count(model: "Model", vocab_size: int) -> Count:
    """Count what pipeline/model/build.py would build; of the dense baseline, if the model asks for one."""
    model = resolved(model, vocab_size)
    head_size = model.head_size or model.n_embd // model.n_head
    width = model.n_head * head_size
    attention = model.n_embd * (2 * width + 2 * model.n_query_groups * head_size)
    norms = 2 * model.n_embd + (2 * head_size if model.norm_qk else 0)
    per_width = 3 * model.n_embd  # gate, up and down
    dense = per_width * model.intermediate_size
    expert = per_width * model.moe_intermediate_size
    moe = model.n_embd * model.n_expert + expert * (model.n_expert + model.n_shared_expert)  # the router first
    n_moe = len(moe_layers(model))
    matrices = model.n_layer * attention + n_moe * moe + (model.n_layer - n_moe) * dense
    idle = n_moe * expert * (model.n_expert - model.n_expert_per_token)
    rows, tables = padded_rows(model, vocab_size), 1 if model.tie_embeddings else 2
    padding = (rows - n_rows(model, vocab_size)) * model.n_embd * tables
    total = matrices + model.n_layer * norms + (tables * rows + 1) * model.n_embd - padding  # and the last norm
    return Count(total, total - idle, padding, matrices - idle + rows * model.n_embd, model.n_layer, width)


def resolved(model: "Model", vocab_size: int) -> "Model":
    """The model to build: itself, or the dense one that `dense_baseline` asks for, as large in active or total."""
    if model.dense_baseline == "none":
        return model
    plain = model.model_copy(update={"dense_baseline": "none"})
    if not model.n_expert:
        return plain
    target = getattr(count(plain, vocab_size), model.dense_baseline)

    def dense(width: int) -> "Model":
        return plain.model_copy(update={"n_expert": 0, "n_expert_per_token": 0, "intermediate_size": width})

    narrow = count(dense(1), vocab_size).total
    per_width = count(dense(2), vocab_size).total - narrow
    ideal = 1 + (target - narrow) / per_width
    for width in (8 * round(ideal / 8), round(ideal)):  # whole rows of 16 bytes where that is close enough
        if width > 0 and abs(width - ideal) * per_width <= 0.0025 * target:
            return dense(width)
    return dense(max(1, round(ideal)))


def n_rows(model: "Model", vocab_size: int) -> int:
    """Rows of the embedding, for a tokenizer of `vocab_size` tokens. Raises UserError where they are too few."""
    if model.vocab_size is not None and model.vocab_size < vocab_size:
        raise UserError(
            f"model.vocab_size = {model.vocab_size}, but the tokenizer has {vocab_size} tokens; "
            "set it to at least that, or to null"
        )
    return model.vocab_size or vocab_size


def padded_rows(model: "Model", vocab_size: int) -> int:
    """The same, as the embedding and head hold them: a multiple of model.padding_multiple."""
    return -(-n_rows(model, vocab_size) // model.padding_multiple) * model.padding_multiple
