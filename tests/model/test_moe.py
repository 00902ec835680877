"""The expert layer against litgpt's, against brute force, and without ever waiting for a device."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from litgpt.config import Config
from litgpt.model import LLaMAMoE
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.model import expert_kernels
from pipeline.model.moe import MoE, dispatch
from pipeline.model.routing import RoutingTotals, routing


def _config(n_expert: int = 8, top: int = 2, router: str = "softmax", n_shared: int = 0, width: int = 24) -> Config:
    sigmoid = {"n_expert_groups": n_expert, "n_topk_groups": n_expert, "n_topk_scores_per_group": 1}
    return Config(
        n_embd=16, n_head=2, n_layer=1, bias=False, mlp_class_name="LLaMAMoE", intermediate_size=32,
        moe_intermediate_size=width, n_expert=n_expert, n_expert_per_token=top, n_shared_expert=n_shared or None,
        padded_vocab_size=64, norm_topk_prob=True, routed_scaling_factor=2.5 if router == "sigmoid" else 1.0,
        **(sigmoid if router == "sigmoid" else {}),
    )  # fmt: skip


def _pair(config: Config, seed: int = 0) -> tuple[LLaMAMoE, MoE]:
    """litgpt's layer with random weights, and ours with the same."""
    torch.manual_seed(seed)
    theirs, ours = LLaMAMoE(config), MoE(config)
    for name, tensor in theirs.state_dict().items():
        tensor.normal_(std=0.1 if name.endswith("bias") else 0.25)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def _assert_same(theirs: LLaMAMoE, ours: MoE, x_BTC: Tensor) -> None:
    """Outputs and the gradients of the input and of every weight agree to 1e-5."""
    x_theirs, x_ours = x_BTC.clone().requires_grad_(), x_BTC.clone().requires_grad_()
    y_theirs, y_ours = theirs(x_theirs), ours(x_ours)
    torch.testing.assert_close(y_ours, y_theirs, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(y_ours) / y_ours.size(1)
    (y_theirs * weight).sum().backward()
    (y_ours * weight).sum().backward()
    torch.testing.assert_close(x_ours.grad, x_theirs.grad, rtol=1e-5, atol=1e-5)
    shape = ours.state_dict()
    grads = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        expected = torch.zeros_like(shape[name]) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(_gradient(grads, name), expected, rtol=1e-5, atol=1e-5, msg=name)


def _gradient(grads: dict[str, Tensor | None], name: str) -> Tensor:
    """Our gradient of the weight that litgpt calls `name`."""
    if not name.startswith("experts."):
        found = grads[name]
    else:
        _, expert, part, _ = name.split(".")
        stacked = grads["down_ECI" if part == "proj" else "gate_up_EJC"]
        assert stacked is not None
        found = stacked[int(expert)]
        found = found if part == "proj" else found.chunk(2)[part == "fc_2"]
    assert found is not None
    return found


@settings(deadline=None, max_examples=25)
@given(
    n_expert=st.integers(1, 64), top=st.integers(1, 8), n_tokens=st.integers(1, 40),
    n_shared=st.sampled_from([0, 0, 2]), router=st.sampled_from(["softmax", "sigmoid"]), seed=st.integers(0, 99),
)  # fmt: skip
@example(n_expert=1, top=1, n_tokens=1, n_shared=0, router="softmax", seed=0)
@example(n_expert=64, top=8, n_tokens=1, n_shared=0, router="softmax", seed=0)
@example(n_expert=64, top=8, n_tokens=40, n_shared=0, router="softmax", seed=0)
def test_forward_and_gradients_are_those_of_litgpt(
    n_expert: int, top: int, n_tokens: int, n_shared: int, router: str, seed: int
) -> None:
    if n_expert == 1:
        router = "softmax"  # litgpt's sigmoid router wants two
    theirs, ours = _pair(_config(n_expert, min(top, n_expert), router, n_shared), seed)
    _assert_same(theirs, ours, torch.randn(1, n_tokens, 16))


def test_an_expert_without_a_token_gets_a_gradient_of_zero() -> None:
    theirs, ours = _pair(_config(n_expert=4, top=1))
    with torch.no_grad():
        theirs.gate.weight.zero_()
        theirs.gate.weight[1] = 1.0
    ours.load_state_dict(theirs.state_dict())
    _assert_same(theirs, ours, torch.rand(2, 9, 16) + 0.1)
    assert ours.routing is not None
    assert ours.routing.count_E.tolist() == [0, 18, 0, 0]


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
@pytest.mark.parametrize("n_shared", [0, 2])
def test_state_dicts_go_both_ways(router: str, n_shared: int) -> None:
    theirs, ours = _pair(_config(router=router, n_shared=n_shared))
    mine = ours.state_dict()
    assert mine.keys() == theirs.state_dict().keys()
    theirs.load_state_dict(mine)
    for name, tensor in theirs.state_dict().items():
        assert tensor.equal(mine[name]), name


def test_a_missing_expert_is_named() -> None:
    theirs, ours = _pair(_config())
    state = theirs.state_dict()
    del state["experts.3.fc_2.weight"]
    with pytest.raises(RuntimeError, match="gate_up_EJC"):
        ours.load_state_dict(state)


@pytest.mark.parametrize(("router", "normalize"), itertools.product(["softmax", "sigmoid"], [True, False]))
def test_routing_weights_are_those_of_the_formula(router: str, normalize: bool) -> None:
    layer = MoE(_config(n_expert=6, top=3, router=router), normalize)
    if router == "sigmoid":
        layer.gate.e_score_correction_bias.uniform_(-0.5, 0.5)
    x_NC = torch.randn(11, 16)
    weight_NK, index_NK, _, _ = layer.gate(x_NC)
    for x, weights, experts in zip(x_NC.double(), weight_NK, index_NK, strict=True):
        logits = layer.gate.weight.double() @ x
        score = logits.softmax(0) if router == "softmax" else 1 / (1 + torch.exp(-logits))
        choice = score + layer.gate.e_score_correction_bias if router == "sigmoid" else score
        expected = sorted(range(6), key=lambda e: -choice[e])[:3]
        assert set(expected) == set(experts.tolist())
        scale = sum(score[e] for e in expected) if normalize else 1.0
        for weight, e in zip(weights, experts, strict=True):
            assert weight.item() == pytest.approx((score[e] / scale).item(), rel=1e-5)


def test_the_router_computes_in_float32_whatever_the_precision() -> None:
    layer = MoE(_config()).bfloat16()
    x_NC = torch.randn(5, 16).bfloat16()
    expected = x_NC.float() @ layer.gate.weight.float().T
    with torch.autocast("cpu", torch.bfloat16):
        logits_NE = layer.gate(x_NC)[2]
    assert logits_NE.dtype == torch.float32
    torch.testing.assert_close(logits_NE, expected)


def test_autocast_multiplies_in_bfloat16_and_keeps_float32_gradients() -> None:
    _, layer = _pair(_config(n_shared=1))
    x_BTC = torch.randn(2, 8, 16)
    exact = layer(x_BTC)
    with torch.autocast("cpu", torch.bfloat16):
        y_BTC = layer(x_BTC)
    assert y_BTC.dtype == torch.bfloat16
    torch.testing.assert_close(y_BTC.float(), exact, rtol=0.05, atol=0.05)
    y_BTC.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


# --- kernels ----------------------------------------------------------------------------------------------------------


def _assignments(n_tokens: int, n_expert: int, top: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    index_NK = torch.rand(n_tokens, n_expert).topk(top, -1).indices
    order_S, end_E = dispatch(index_NK, n_expert)
    leaves = [torch.randn(*s, dtype=dtype).requires_grad_() for s in [(n_tokens, 8), (n_tokens, top)]]
    weights = [torch.randn(*s, dtype=dtype).mul_(0.3).requires_grad_() for s in [(n_expert, 16, 8), (n_expert, 8, 8)]]
    return (*leaves, order_S, end_E, *weights)


def _sorted_kernel(products, x_NC, weight_NK, order_S, end_E, gate_up_EJC, down_ECI):  # type: ignore[no-untyped-def]
    """What `experts` does off the CPU."""
    token_S, place_NK = order_S // weight_NK.size(1), order_S.argsort().view(weight_NK.shape)
    x_SC = expert_kernels._Spread.apply(x_NC, token_S, place_NK)
    y_SC = products(x_SC, weight_NK.reshape(-1, 1)[order_S], end_E, gate_up_EJC, down_ECI)
    return expert_kernels._Gather.apply(y_SC, token_S, place_NK)


def test_gradients_of_the_cpu_kernel_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    x, weight, order, end, up, down = _assignments(5, 4, 2)
    assert torch.autograd.gradcheck(
        lambda x, w, u, d: expert_kernels.experts(x, w, order, end, u, d), (x, weight, up, down)
    )


@pytest.mark.parametrize(("n_tokens", "n_expert", "top"), [(1, 1, 1), (1, 8, 2), (50, 3, 2), (300, 2, 1), (40, 64, 8)])
@pytest.mark.parametrize("products", [expert_kernels._blocked, expert_kernels._grouped])
def test_every_kernel_gives_the_same(products, n_tokens: int, n_expert: int, top: int) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    inputs = _assignments(n_tokens, n_expert, top, torch.float32)
    leaves = [t for t in inputs if t.requires_grad]
    results = []
    for kernel in (expert_kernels.experts, lambda *a: _sorted_kernel(products, *a)):
        y_NC = kernel(*inputs)
        results.append([y_NC, *torch.autograd.grad(y_NC.square().mean(), leaves)])
    for ours, other in zip(*results, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


def test_the_cpu_operator_is_well_formed() -> None:
    x, weight, order, end, up, down = _assignments(5, 4, 2, torch.float32)
    place = order.argsort().view(weight.shape)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    inputs = (x, weight, order // 2, place, end, up, down)
    torch.library.opcheck(expert_kernels._experts_cpu, inputs, test_utils=checks)


def test_off_the_cpu_no_value_is_read_on_the_host() -> None:
    """A tensor on the meta device has no value: whatever waits for one raises."""
    layer = MoE(_config()).to("meta")
    x_BTC = torch.randn(2, 8, 16, device="meta", requires_grad=True)
    layer(x_BTC).sum().backward()
    assert x_BTC.grad is not None
    inputs = [t.to("meta") for t in _assignments(16, 4, 2, torch.bfloat16)]
    assert _sorted_kernel(expert_kernels._grouped, *inputs).shape == (16, 8)


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_the_layer_compiles_as_one_graph(router: str) -> None:
    _, layer = _pair(_config(router=router, n_shared=1))
    x_BTC = torch.randn(2, 8, 16)
    eager, grad = layer(x_BTC), torch.autograd.grad(layer(x_BTC).sum(), list(layer.parameters()))
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x_BTC), eager)
    again = torch.autograd.grad(compiled(x_BTC).sum(), list(layer.parameters()))
    torch.testing.assert_close(again, grad)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_counting() -> None:
    layer = MoE(_config(n_expert=4, top=2))
    x_BTC = torch.randn(3, 7, 16) * 20
    totals = RoutingTotals()
    for part in x_BTC.split(1):
        layer(part)
        totals.add(routing(layer))
    (stats,) = totals.read()
    logits = F.linear(x_BTC.view(-1, 16), layer.gate.weight)
    chosen = logits.topk(2).indices.flatten().tolist()
    p = logits.double().softmax(-1)
    assert stats.tokens_per_expert == [chosen.count(e) for e in range(4)]
    load = torch.tensor(stats.tokens_per_expert).double() / len(chosen)
    even = torch.log(torch.tensor(4.0)).item()
    assert stats.load_entropy == pytest.approx(torch.special.entr(load).sum().item() / even, rel=1e-5)
    assert stats.max_violation == pytest.approx(load.max().item() * 4 - 1)
    assert stats.dead_experts == stats.tokens_per_expert.count(0)
    assert stats.probability == pytest.approx(p.mean(0).tolist(), rel=1e-5)
    assert stats.router_entropy == pytest.approx(torch.special.entr(p).sum(-1).mean().item() / even, rel=1e-4)
    assert stats.confidence == pytest.approx(p.amax(-1).mean().item(), rel=1e-5)
    totals.reset()
    assert totals.read() == []


def test_activation_checkpointing_counts_each_token_once_and_keeps_the_gradient() -> None:
    _, layer = _pair(_config())
    x_BTC = torch.randn(2, 8, 16, requires_grad=True)
    results = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        totals = RoutingTotals()
        y_BTC = run(x_BTC)
        seen = routing(layer)
        totals.add(seen)
        loss = y_BTC.square().sum() + (seen[0].probability_E * torch.arange(8)).sum() + seen[0].z
        grads = torch.autograd.grad(loss, [x_BTC, *layer.parameters()])
        results.append((totals.read()[0].tokens_per_expert, grads))
    (plain, grads), (checkpointed, again) = results
    assert plain == checkpointed
    assert sum(plain) == 2 * 8 * 2
    torch.testing.assert_close(again, grads)


def test_nothing_is_recorded_in_eval() -> None:
    layer = MoE(_config()).eval()
    layer(torch.randn(1, 4, 16))
    assert routing(layer) == []


def test_the_bias_of_a_sigmoid_router_evens_the_load_without_a_loss() -> None:
    torch.manual_seed(0)
    layer = MoE(_config(n_expert=8, top=2, router="sigmoid"))
    with torch.no_grad():
        layer.gate.weight.normal_(std=0.3)
        layer.gate.weight[:2] += 0.3
    x_BTC = torch.randn(1, 512, 16) + 0.5
    violations = []
    for _ in range(200):
        layer(x_BTC)
        assert layer.routing is not None
        layer.gate.balance(layer.routing.count_E, 0.01)
        load = layer.routing.count_E / layer.routing.count_E.sum()
        violations.append(load.max().item() * 8 - 1)
    assert violations[0] > 1.0
    assert violations[-1] < 0.2


def test_a_choice_of_expert_groups_is_refused() -> None:
    config = _config(router="sigmoid")
    config.n_topk_groups = 2
    with pytest.raises(ValueError, match="n_topk_groups"):
        MoE(config)
