"""Schedules reach their marks, optimizers are torch's, and a step that is not finite changes nothing."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import UserError
from pipeline.model import build
from pipeline.params import Schedule
from pipeline.train import muon
from pipeline.train import optimizers as optim
from pipeline.train.muon import Muon
from tests.train.small import tiny

CPU = torch.device("cpu")


def schedule(name: str = "cosine", **changes: float) -> Schedule:
    values = {"warmup": 0.1, "decay": 0.2, "min_lr": 0.0, "min_lr_fraction": 0.3} | changes
    return Schedule(name=name, **values)


def rates(chosen: Schedule, total: int, peak: float = 1.0) -> list[float]:
    return [optim.learning_rate(chosen, peak, step, total) for step in range(total)]


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_a_schedule_warms_up_to_the_peak_and_ends_at_the_floor(name: str) -> None:
    values = rates(schedule(name), 100)
    assert values[0] == pytest.approx(0.1) and values[9] == 1.0
    assert values[-1] == pytest.approx(0.3)
    assert max(values) == 1.0 and sorted(values[9:], reverse=True) == values[9:]


def test_warmup_in_steps_and_as_a_share_are_the_same() -> None:
    assert rates(schedule(warmup=10), 100) == rates(schedule(warmup=0.1), 100)


def test_the_higher_of_two_floors_holds() -> None:
    assert rates(schedule(min_lr=0.5), 50)[-1] == pytest.approx(0.5)
    assert rates(schedule(min_lr=0.1), 50)[-1] == pytest.approx(0.3)


def test_wsd_stays_at_the_peak_until_it_decays() -> None:
    values = rates(schedule("wsd"), 100)
    assert set(values[9:81]) == {1.0} and values[82] < 1.0


def test_cosine_is_a_cosine() -> None:
    values = rates(schedule(warmup=0, min_lr_fraction=0.0), 101)
    assert values[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(["cosine", "linear", "wsd", "constant"]),
    st.integers(1, 300),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_no_rate_leaves_its_bounds(name: str, total: int, warmup: float, decay: float, floor: float) -> None:
    values = rates(schedule(name, warmup=warmup, decay=decay, min_lr_fraction=floor), total, peak=0.01)
    assert all(0 <= rate <= 0.01 * (1 + 1e-9) for rate in values)


def model_and_gradients(name: str) -> tuple[build.MoEGPT, list[torch.optim.Optimizer]]:
    parameters = tiny(optimizer={"name": name})
    model = build.build(parameters.model, 257, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model, optim.build(model, parameters.train.optimizer, CPU)


def test_only_matrices_decay() -> None:
    model, (adamw,) = model_and_gradients("adamw")
    decay = {id(p): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert {decay[id(p)] for p in model.parameters() if p.ndim >= 2} == {0.1}
    assert {decay[id(p)] for p in model.parameters() if p.ndim < 2} == {0.0}


def test_fused_adamw_steps_as_the_plain_one_does() -> None:
    model, (fused,) = model_and_gradients("adamw")
    other, _ = model_and_gradients("adamw")
    groups = [
        {"params": [p for p in other.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in other.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=0.004, betas=(0.9, 0.95), foreach=False)
    assert fused.defaults["fused"]
    for _ in range(3):
        optim.step_unless([fused], torch.tensor(False))
        plain.step()
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(3, 24, 16), (3, 16, 24), (16, 24)], ids=str)
def test_muon_treats_each_expert_as_torchs_muon_treats_a_matrix(shape: tuple[int, ...]) -> None:
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    stacked = nn.Parameter(weights.clone())
    single = [nn.Parameter(w.clone()) for w in weights.view(-1, *shape[-2:])]
    ours = Muon([stacked], lr=0.02, weight_decay=0.1)
    theirs = torch.optim.Muon(single, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        stacked.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for parameter, grad in zip(single, stacked.grad.view(-1, *shape[-2:]), strict=True):
            parameter.grad = grad.clone()
        ours.step()
        theirs.step()
    expected = torch.stack(list(single)).view(shape)
    error = (stacked - expected).norm() / (expected - weights).norm()
    assert error < 0.02  # theirs is in bfloat16, ours where the processor multiplies it fast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_matrices_of_a_muon_step_have_singular_values_near_one(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(muon, "_fastest", lambda device: dtype)
    matrix_MRC = torch.randn(4, 48, 32, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(muon.orthogonalized(matrix_MRC).double())
    assert values.min() > 0.5 and values.max() < 1.25
    x = matrix_MRC.double()
    x = x / x.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):  # the iteration as the paper writes it
        gram = x @ x.mT
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    error = (muon.orthogonalized(matrix_MRC).double() - x).norm() / x.norm()
    assert error < (1e-5 if dtype == torch.float32 else 0.03)


def test_muon_takes_the_matrices_of_the_layers_and_leaves_the_rest_to_adamw() -> None:
    model, (muon, adamw) = model_and_gradients("muon")
    by_adamw = {id(p) for group in adamw.param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in by_adamw}
    assert {n for n in names if "norm" not in n and "ln_f" not in n} == {
        "lm_head.weight",
        "transformer.wte.weight",
        "transformer.h.0.mlp.gate.weight",
        "transformer.h.1.mlp.gate.weight",
    }
    before = {name: p.clone() for name, p in model.named_parameters()}
    optim.step_unless([muon, adamw], torch.tensor(False))
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_that_is_left_out_changes_neither_weights_nor_state(name: str) -> None:
    model, optimizers = model_and_gradients(name)
    optim.step_unless(optimizers, torch.tensor(False))
    model_2, optimizers_2 = model_and_gradients(name)
    optim.step_unless(optimizers_2, torch.tensor(False))
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.fill_(float("nan"))
    optim.step_unless(optimizers, torch.tensor(True))
    for i, each in enumerate((model, model_2)):  # and then both take the same good step
        for parameter in each.parameters():
            parameter.grad = torch.ones_like(parameter)
        optim.step_unless((optimizers, optimizers_2)[i], torch.tensor(False))
    for mine, theirs in zip(model.parameters(), model_2.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_rate_in_a_tensor_is_filled_and_its_peak_stays() -> None:
    weight = nn.Parameter(torch.ones(3))
    adamw = torch.optim.AdamW([weight], lr=torch.tensor(0.5))
    rate = adamw.param_groups[0]["lr"]
    adamw.param_groups[0]["peak"] = float(rate)
    seen = []
    for step in range(20):
        set_to = optim.set_learning_rates([adamw], schedule(), step, 20)
        assert adamw.param_groups[0]["lr"] is rate and float(rate) == pytest.approx(set_to)
        seen.append(set_to)
    assert seen == pytest.approx(rates(schedule(), 20, peak=0.5))


def test_an_8_bit_adamw_steps_under_a_schedule() -> None:
    pytest.importorskip("torchao.optim")
    layer = nn.Linear(128, 64, bias=False)
    before = layer.weight.detach().clone()
    (ours,) = optim.build(layer, tiny(device="cuda", optimizer={"name": "adamw8bit"}).train.optimizer, CPU)
    for step in range(3):
        lr = optim.set_learning_rates([ours], schedule(), step, 3)
        assert float(ours.param_groups[0]["lr"]) == pytest.approx(lr)
        layer.weight.grad = torch.ones_like(layer.weight)
        optim.step_unless([ours], torch.tensor(False))
    assert not torch.equal(layer.weight, before)


def test_an_8_bit_adamw_steps_about_as_adamw_does() -> None:
    pytest.importorskip("torchao.optim")
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    mine, theirs = nn.Linear(128, 64, bias=False), nn.Linear(128, 64, bias=False)
    chosen = tiny(device="cuda", optimizer={"name": "adamw8bit"}).train.optimizer
    for layer in (mine, theirs):
        layer.weight.data.copy_(weight)
    (ours,) = optim.build(mine, chosen, CPU)
    (plain,) = optim.build(theirs, chosen.model_copy(update={"name": "adamw"}), CPU)
    for seed in range(3):
        for layer in (mine, theirs):
            layer.weight.grad = torch.randn(64, 128, generator=torch.Generator().manual_seed(seed))
        optim.step_unless([ours], torch.tensor(False))
        optim.step_unless([plain], torch.tensor(False))
    moved = (theirs.weight - weight).abs().mean()
    assert (mine.weight - theirs.weight).abs().mean() < 0.1 * moved


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
@pytest.mark.parametrize(("device", "strategy"), [("cpu", "auto"), ("mps", "auto"), ("cuda", "fsdp")])
def test_params_and_launch_refuse_an_optimizer_where_the_table_says_so(name: str, device: str, strategy: str) -> None:
    refusal = optim.OPTIMIZERS[name].refusal(name, device, strategy)
    changes = {"device": device, "strategy": strategy, "optimizer": {"name": name}}
    if refusal is None:
        assert tiny(**changes).train.optimizer.name == name
        return
    assert name in refusal and "; take " in refusal
    with pytest.raises(UserError, match=re.escape(f"train.{refusal}")):
        tiny(**changes)
