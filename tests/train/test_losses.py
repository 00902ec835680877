"""Chunked cross-entropy against the plain one; the router's losses against brute force, and what they do."""

import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from litgpt.config import Config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.model.moe import MoE
from pipeline.model.routing import RoutingStats, RoutingTotals, routing
from pipeline.train.losses import IGNORE, GlobalBatch, cross_entropy

E, K, C = 6, 2, 8


def _layer(router: str = "softmax", seed: int = 0) -> MoE:
    torch.manual_seed(seed)
    groups = {"n_expert_groups": E, "n_topk_groups": E, "n_topk_scores_per_group": 1} if router == "sigmoid" else {}
    config = Config(
        n_embd=C, n_head=2, n_layer=1, bias=False, mlp_class_name="LLaMAMoE", intermediate_size=8,
        moe_intermediate_size=8, n_expert=E, n_expert_per_token=K, padded_vocab_size=8, norm_topk_prob=True, **groups,
    )  # fmt: skip
    layer = MoE(config)
    torch.nn.init.normal_(layer.gate.weight, std=0.7)
    return layer


# --- cross-entropy ----------------------------------------------------------------------------------------------------


def _targets() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, head = torch.randn(3, 11, C, requires_grad=True), torch.randn(40, C, requires_grad=True)
    target = torch.randint(0, 40, (3, 11))
    target[0, :5] = IGNORE
    return hidden, head, target


@pytest.mark.parametrize("chunk", [1, 7, 33, 100])
def test_chunks_give_the_loss_and_the_gradients_of_the_whole(chunk: int) -> None:
    hidden, head, target = _targets()
    whole = F.cross_entropy((hidden @ head.T).flatten(0, 1), target.flatten(), ignore_index=IGNORE)
    chunked = cross_entropy(hidden, head, target, chunk)
    torch.testing.assert_close(chunked, whole)
    expected = torch.autograd.grad(3 * whole, [hidden, head])
    torch.testing.assert_close(torch.autograd.grad(3 * chunked, [hidden, head]), expected)


def test_tied_weights_get_both_gradients() -> None:
    _, head, target = _targets()
    idx = torch.randint(0, 40, (3, 11))
    plain, chunked = (torch.autograd.grad(cross_entropy(head[idx], head, target, n), head)[0] for n in (0, 4))
    torch.testing.assert_close(chunked, plain)


def test_bfloat16_keeps_the_loss_in_float32() -> None:
    hidden, head, target = _targets()
    exact = cross_entropy(hidden, head, target)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(hidden, head, target, 5)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.02)
    loss.backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32


def test_float16_with_a_loss_scale_loses_no_small_gradient() -> None:
    """The mean over many targets makes each gradient smaller than float16 can hold; the scale makes up for it."""
    torch.manual_seed(0)
    hidden, head = torch.randn(1, 4096, C), torch.randn(40, C) * 0.01
    target, scale = torch.randint(0, 40, (1, 4096)), 4096.0
    exact, half = (hidden.clone().requires_grad_(), hidden.half().requires_grad_())
    cross_entropy(exact, head, target).backward()
    (cross_entropy(half, head.half(), target, 512) * scale).backward()
    assert exact.grad is not None and half.grad is not None
    error = (half.grad.float() / scale - exact.grad).norm() / exact.grad.norm()
    assert error < 0.01


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("training", [True, False])
def test_never_more_logits_than_a_chunk(training: bool) -> None:
    hidden, head, target = _targets()
    with _Largest() as largest, torch.set_grad_enabled(training):
        loss = cross_entropy(hidden, head, target, 9)
        if training:
            loss.backward()
    assert largest.elements == 9 * 40


# --- load balancing ---------------------------------------------------------------------------------------------------


def _brute_force(layer: MoE, x_NC: Tensor, chosen_from: Tensor) -> Tensor:
    """E · Σ_e f_e · P_e token by token, in float64: f counted over `chosen_from`, P the mean over `x_NC`."""
    weight = layer.gate.weight.double()
    assigned = [0] * E
    for x in chosen_from.double():
        logits = weight @ x
        choice = logits.sigmoid() + layer.gate.e_score_correction_bias if layer.gate.kind == "sigmoid" else logits
        for e in choice.argsort(descending=True)[:K].tolist():
            assigned[e] += 1
    total = torch.zeros((), dtype=torch.float64)
    for x in x_NC.double():
        logits = weight @ x
        score = logits.sigmoid() if layer.gate.kind == "sigmoid" else torch.exp(logits)
        total = total + sum(assigned[e] / sum(assigned) * score[e] / score.sum() for e in range(E))
    return E * total / len(x_NC)


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_balance_and_its_gradient_on_the_router_are_those_of_brute_force(router: str) -> None:
    layer, x_NC = _layer(router), torch.randn(20, C)
    layer(x_NC[None])
    ours = GlobalBatch()(routing(layer)).balance
    expected = _brute_force(layer, x_NC, x_NC)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    (grad,) = torch.autograd.grad(ours, layer.gate.weight)
    (grad_expected,) = torch.autograd.grad(expected, layer.gate.weight)
    assert grad_expected.abs().max() > 1e-3
    torch.testing.assert_close(grad, grad_expected.float(), rtol=1e-4, atol=1e-6)


def test_z_loss_and_its_gradient_are_those_of_the_formula() -> None:
    layer, x_NC = _layer(), torch.randn(20, C)
    layer(x_NC[None])
    ours = GlobalBatch()(routing(layer)).z
    expected = (torch.exp(x_NC.double() @ layer.gate.weight.double().T).sum(1).log() ** 2).mean()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    (grad,) = torch.autograd.grad(ours, layer.gate.weight)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, layer.gate.weight)[0].float(), rtol=1e-4, atol=1e-6)


def test_fractions_are_those_of_the_step_so_far() -> None:
    """With two micro batches the first has its own fractions, the second those of both; a new step starts anew."""
    layer, x_NC = _layer(), torch.randn(40, C)
    balance = GlobalBatch()
    for _ in range(2):
        for part, seen in ((x_NC[:20], x_NC[:20]), (x_NC[20:], x_NC)):
            layer(part[None])
            ours = balance(routing(layer)).balance
            assert ours.item() == pytest.approx(_brute_force(layer, part, seen).item(), rel=1e-5)
        balance.finish(layer, 0.0)


def _rank(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    layer = _layer()
    layer(torch.randn(40, C, generator=torch.Generator().manual_seed(1))[20 * rank : 20 * (rank + 1)][None])
    totals = RoutingTotals()
    totals.add(routing(layer))
    loss = GlobalBatch()(routing(layer)).balance
    (grad,) = torch.autograd.grad(loss, layer.gate.weight)
    torch.distributed.all_reduce(grad)
    torch.save((grad / 2, totals.read()[0].tokens_per_expert), f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_have_the_gradient_and_the_statistics_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other = torch.multiprocessing.get_context("spawn").Process(target=_rank, args=(1, port, str(tmp_path)))
    other.start()
    _rank(0, port, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    layer, x_NC = _layer(), torch.randn(40, C, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad(_brute_force(layer, x_NC, x_NC), layer.gate.weight)
    layer(x_NC[None])
    assert layer.routing is not None
    for rank in range(2):
        grad, tokens_per_expert = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(grad, expected.float(), rtol=1e-4, atol=1e-6)
        assert tokens_per_expert == layer.routing.count_E.tolist()


# --- what they do -----------------------------------------------------------------------------------------------------


def _trained(coef: float, bias_rate: float = 0.0, router: str = "softmax", collapsed: bool = False) -> RoutingStats:
    """Fit a layer to a random function for some steps; its routing over the last of them."""
    layer = _layer(router)
    generator = torch.Generator().manual_seed(0)
    x_NC = torch.randn(256, C, generator=generator) + 0.5
    target_NC = torch.tanh(x_NC @ torch.randn(C, C, generator=generator))
    if collapsed:  # the same two experts for every token
        with torch.no_grad():
            layer.gate.weight[:] = 0.0
            layer.gate.weight[0], layer.gate.weight[1] = 1.0, 0.9
            x_NC = x_NC.abs()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.0)
    balance, totals = GlobalBatch(), RoutingTotals()
    for step in range(150):
        y_NC = layer(x_NC[None])[0]
        seen = routing(layer)
        (F.mse_loss(y_NC, target_NC) + coef * balance(seen).balance).backward()
        optimizer.step()
        optimizer.zero_grad()
        balance.finish(layer, bias_rate)
        if step >= 140:
            totals.add(seen)
    return totals.read()[0]


def test_load_entropy_rises_with_the_balancing_loss() -> None:
    assert _trained(0.1).load_entropy > 0.99 > 0.97 > _trained(0.0).load_entropy


def test_a_collapsed_router_recovers_with_the_loss_and_not_without() -> None:
    without, with_loss = _trained(0.0, collapsed=True), _trained(0.1, collapsed=True)
    assert without.dead_experts > 0
    assert with_loss.dead_experts == 0
    assert with_loss.load_entropy > 0.95


def test_a_collapsed_sigmoid_router_recovers_by_its_bias_alone() -> None:
    without = _trained(0.0, router="sigmoid", collapsed=True)
    with_bias = _trained(0.0, bias_rate=0.01, router="sigmoid", collapsed=True)
    assert without.dead_experts > 0
    assert with_bias.dead_experts == 0
    assert with_bias.load_entropy > 0.95
