"""Attention a document at a time is attention under a mask: against the plain formula in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.model.build import may_attend
from pipeline.model.document_attention import attend


def _begins(lengths: list[int]) -> Tensor:
    """Where each token's document begins, of documents side by side: [1, T]."""
    begins = [sum(lengths[:i]) for i in range(len(lengths))]
    return torch.cat([torch.full((length,), begin) for begin, length in zip(begins, lengths, strict=True)])[None]


def _plain(q: Tensor, k: Tensor, v: Tensor, begin_BT: Tensor) -> Tensor:
    scores = q @ k.mT / math.sqrt(q.size(-1))
    return scores.masked_fill(~may_attend(begin_BT), -math.inf).softmax(-1) @ v


@settings(deadline=None, max_examples=30)
@given(
    rows=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=3),
    heads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_output_and_gradients_are_those_of_the_formula(rows: list[list[int]], heads: int, seed: int) -> None:
    torch.manual_seed(seed)
    time = max(sum(lengths) for lengths in rows)
    begin_BT = torch.cat(
        [_begins([*lengths, time - sum(lengths)] if sum(lengths) < time else lengths) for lengths in rows]
    )
    inputs = [torch.randn(len(rows), time, heads, 8).transpose(1, 2).requires_grad_() for _ in range(3)]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    ours, theirs = attend(*inputs, begin_BT), _plain(*exact, begin_BT)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(ours)
    mine = torch.autograd.grad(ours, inputs, grad)
    for found, expected in zip(mine, torch.autograd.grad(theirs, exact, grad.double()), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_computed_in_float32_and_rounded_once() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 30, 8).bfloat16() for _ in range(3))
    begin_BT = torch.cat([_begins([10, 20]), _begins([29, 1])])
    expected = attend(q.float(), k.float(), v.float(), begin_BT).bfloat16()
    assert attend(q, k, v, begin_BT).equal(expected)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_needs_no_gradient_gets_none(frozen: int) -> None:
    inputs = [torch.randn(1, 1, 6, 4) for _ in range(3)]
    for i, each in enumerate(inputs):
        each.requires_grad_(i != frozen)
    attend(*inputs, _begins([2, 4])).sum().backward()
    assert [each.grad is None for each in inputs] == [i == frozen for i in range(3)]


def test_it_compiles_to_the_same_without_falling_back() -> None:
    inputs = [torch.randn(1, 2, 12, 4) for _ in range(3)]
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for lengths in ([5, 7], [1, 2, 9]):
        torch.testing.assert_close(compiled(*inputs, _begins(lengths)), attend(*inputs, _begins(lengths)))
