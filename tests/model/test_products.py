"""Matmuls in bfloat16 between float32: against float64, kind by kind."""

import pytest
import torch
from torch import Tensor

from pipeline.model import build, expert_kernels, products
from pipeline.model.moe import dispatch
from pipeline.train.step import Objective
from tests.model.small import tiny
from tests.train.small import tiny as run_settings

VOCAB = 64


def _gpt() -> build.MoEGPT:
    """A model with every kind of product."""
    return build.build(tiny(moe_every=2, n_shared_expert=1, tie_embeddings=False), VOCAB, seed=1)


def _loss(gpt: build.MoEGPT) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    idx_BT = torch.randint(0, VOCAB, (2, 40))
    settings = run_settings(loss_chunk=16, document_mask=False).train
    loss = Objective(gpt, settings, eos_id=0)(idx_BT)[1].lm
    names, weights = zip(*gpt.named_parameters(), strict=True)
    return loss, dict(zip(names, torch.autograd.grad(loss, weights, allow_unused=True), strict=True))


@pytest.mark.parametrize("kinds", [[kind] for kind in products.KINDS] + [list(products.KINDS)], ids="+".join)
def test_loss_and_gradients_stay_near_those_of_float64(kinds: list[str]) -> None:
    exact, rounded = _gpt().double(), _gpt()
    products.use(rounded, kinds)
    loss, expected = _loss(exact)
    found, grads = _loss(rounded)
    assert found.item() == pytest.approx(loss.item(), rel=3e-3)
    assert all(grad is None or grad.dtype == torch.float32 for grad in grads.values())
    assert 1e-3 < _furthest(grads, expected) < 0.05
    assert _furthest(_loss(_gpt())[1], expected) < 1e-4, "what is not asked for stays in float32"


def _furthest(grads: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of a gradient, as a share of it; not of routers, whose tokens may change experts."""
    return max(
        float((grad.double() - expected[name]).norm() / expected[name].norm())
        for name, grad in grads.items()
        if grad is not None and "mlp.gate.weight" not in name
    )


def test_kinds_are_chosen_one_by_one_and_taken_back() -> None:
    gpt = _gpt()
    with torch.no_grad():
        plain = gpt.hidden(torch.arange(20)[None])
        for kind in ("attention", "mlp", "experts"):
            products.use(gpt, [kind])
            assert not gpt.hidden(torch.arange(20)[None]).equal(plain), kind
        products.use(gpt, ["head"])
        assert gpt.in_bfloat16 and gpt.hidden(torch.arange(20)[None]).equal(plain)
        products.use(gpt, [])
        assert not gpt.in_bfloat16 and gpt.hidden(torch.arange(20)[None]).equal(plain)


def test_the_probe_names_the_kinds_that_the_model_has() -> None:
    gains = products.probe(_gpt(), 64, 32)
    assert list(gains) == ["attention", "mlp", "experts", "head"] and all(gain >= 0 for gain in gains.values())
    assert list(products.probe(build.build(tiny(n_expert=0), VOCAB), 64, 0)) == ["attention", "mlp", "head"]


def test_only_what_gains_enough_is_worthwhile() -> None:
    assert products.worthwhile({"attention": 1.1, "experts": 3.4, "head": 0.0}) == ["experts"]


@pytest.mark.parametrize("counts", [[5, 0, 40, 19], [32, 32, 0, 0], [0, 0, 0, 64], [1, 1, 1, 61]])
def test_slices_that_are_rounded_up_give_what_exact_ones_give(counts: list[int]) -> None:
    """bfloat16 pads each expert's slice; what it is padded with adds nothing, forward and backward."""
    torch.manual_seed(0)
    index_NK = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))[torch.randperm(64)].view(32, 2)
    order_S, end_E = dispatch(index_NK, 4)
    inputs = [torch.randn(32, 16), torch.rand(32, 2), torch.randn(4, 48, 16) / 4, torch.randn(4, 16, 24) / 5]
    grad_NC = torch.randn(32, 16)

    def run(dtype: torch.dtype) -> list[Tensor]:
        x, weight, gate_up, down = (each.bfloat16().to(dtype).requires_grad_() for each in inputs)
        y_NC = expert_kernels.experts(x, weight, order_S, end_E, gate_up, down)
        return [y_NC, *torch.autograd.grad(y_NC, (x, weight, gate_up, down), grad_NC.bfloat16().to(dtype))]

    for found, expected in zip(run(torch.bfloat16), run(torch.float64), strict=True):
        assert found.isfinite().all()
        assert (found.double() - expected).norm() <= 0.02 * expected.norm()
