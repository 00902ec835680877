"""Parameters and arithmetic counted from params alone are those of the model that is built."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model import build, size
from pipeline.model.moe import MoE
from tests.model.small import tiny

VOCAB = 50


@st.composite
def _changes(draw: st.DrawFn) -> dict[str, Any]:
    """Any structure that transformers has a class for."""
    moe = draw(st.booleans())
    sigmoid = moe and draw(st.booleans())
    layers = draw(st.integers(1, 4))
    changes: dict[str, Any] = {"n_layer": layers, "n_query_groups": draw(st.sampled_from([1, 2, 4])), "n_head": 4}
    changes |= {"head_size": draw(st.sampled_from([None, 4, 16])), "tie_embeddings": draw(st.booleans())}
    changes |= {"padding_multiple": draw(st.sampled_from([1, 64])), "vocab_size": draw(st.sampled_from([None, 70]))}
    changes |= {"intermediate_size": draw(st.integers(1, 50)), "dense_baseline": "none"}
    if not moe:
        return changes | {"n_expert": 0, "norm_qk": draw(st.booleans())}
    changes |= {"n_expert": draw(st.integers(2, 5)), "moe_intermediate_size": draw(st.integers(1, 50))}
    changes["n_expert_per_token"] = draw(st.integers(1, changes["n_expert"]))
    if sigmoid:
        changes |= {
            "n_shared_expert": draw(st.integers(1, 2)),
            "first_k_dense_replace": draw(st.integers(0, layers - 1)),
        }
        return changes | {"router": "sigmoid"}
    return changes | {"norm_qk": True, "moe_every": draw(st.integers(1, layers))}


@settings(deadline=None, max_examples=50)
@given(changes=_changes(), baseline=st.sampled_from(["none", "active", "total"]))
def test_counts_are_those_of_the_model(changes: dict[str, Any], baseline: str) -> None:
    model = tiny(**changes | {"dense_baseline": baseline})
    counted = size.count(model, VOCAB)
    gpt = build.on_meta(model, VOCAB)
    assert counted.stored == sum(p.numel() for p in gpt.parameters())
    assert gpt.lm_head.weight.size(0) == size.padded_rows(model, VOCAB)
    tables = 1 if model.tie_embeddings else 2
    assert counted.padding == (gpt.lm_head.weight.size(0) - (model.vocab_size or VOCAB)) * 32 * tables
    idle = 0
    for block in gpt.transformer.h:
        if isinstance(block.mlp, MoE):
            experts = block.mlp.gate_up_EJC.numel() + block.mlp.down_ECI.numel()
            idle += experts * (model.n_expert - model.n_expert_per_token) // model.n_expert
    assert counted.active == counted.total - idle
    matrices = sum(p.numel() for p in gpt.transformer.h.parameters() if p.dim() > 1)
    assert counted.matmuls == matrices - idle + gpt.lm_head.weight.numel()


def test_flops_are_those_that_torch_counts() -> None:
    """On one token attention's causal half is its whole, so that every product is counted once by either."""
    model = tiny(n_expert=0)
    gpt, T = build.build(model, VOCAB), 8
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gpt(torch.zeros(1, T, dtype=torch.int64))
    forward = counter.get_total_flops()
    counted = size.count(model, VOCAB)
    attention = 4 * counted.n_layer * counted.attention_width * T * T  # torch multiplies the masked half too
    assert forward == 2 * counted.matmuls * T + attention
    assert counted.flops_per_token(T) * T == 3 * (forward - attention + attention * (T + 1) / (2 * T))


def test_experts_that_a_token_does_not_visit_cost_no_flops() -> None:
    few, many = (size.count(tiny(n_expert=n), VOCAB) for n in (4, 8))
    router = 4 * 32 * 3  # weights of four more experts in three routers
    assert many.matmuls - few.matmuls == router
