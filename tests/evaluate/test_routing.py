"""What is said about routing, against counting by hand and against a forward without hooks."""

import numpy as np
import pytest
import torch

from pipeline.evaluate import routing
from pipeline.evaluate.scoring import Window, score
from pipeline.model.build import MoEGPT
from pipeline.model.layout import moe_layers
from pipeline.model.routing import Router


def test_the_choices_are_those_of_the_routers(model: MoEGPT) -> None:
    tokens_N = np.random.default_rng(0).integers(0, 512, 130)
    scores = score(model, tokens_N, Window(48, None), 2, [torch.device("cpu")])
    assert scores.choices_NLK.shape == (129, len(moe_layers(model.params)), 2)
    seen: list[torch.Tensor] = []
    last = [module for module in model.modules() if isinstance(module, Router)][-1]
    hook = last.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    with torch.inference_mode():
        model.hidden(torch.from_numpy(tokens_N[None, 48:96]))
        expected = torch.nn.functional.linear(seen[0], last.weight).topk(2, -1).indices
    hook.remove()
    np.testing.assert_array_equal(scores.choices_NLK[48:96, -1], expected.numpy())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_sliding_window_counts_each_token_once(model: MoEGPT) -> None:
    tokens_N = np.random.default_rng(0).integers(0, 512, 130)
    scores = score(model, tokens_N, Window(48, 16), 2, [torch.device("cpu")])
    described = routing.describe(scores.choices_NLK, tokens_N[:-1], 4, [1, 2], str)
    assert [sum(counts) for counts in described["assignments"]] == [129 * 2] * 2


def test_describe_by_hand() -> None:
    # two layers, three experts of which the last is never chosen in the first layer
    choices_NLK = np.array([[[0], [0]], [[0], [1]], [[1], [2]], [[1], [2]]], np.uint16)
    found = routing.describe(choices_NLK, np.array([7, 7, 8, 8]), 3, [0, 2], lambda token: f"<{token}>")
    assert found["layers"] == [0, 2]
    assert found["assignments"] == [[2, 2, 0], [1, 1, 2]]
    assert found["dead_experts"] == [1, 0]
    assert found["load_entropy"][0] == pytest.approx(np.log(2) / np.log(3))
    assert found["max_violation"] == pytest.approx([0.5, 0.5])
    assert found["token_information"][0] == pytest.approx(1)  # the token settles the expert
    assert found["token_information"][1] == pytest.approx((1.5 - 0.5) / 1.5)  # bits: half the tokens leave one bit open
    assert found["top_tokens"][0] == [
        [{"token": "<7>", "assignments": 2, "share": 1.0}],
        [{"token": "<8>", "assignments": 2, "share": 1.0}],
        [],
    ]


def test_agreement_is_one_for_a_renaming_and_zero_for_independence() -> None:
    rng = np.random.default_rng(3)
    a = rng.integers(0, 4, 40_000)
    assert routing.agreement(a, np.array([2, 0, 3, 1])[a]) == pytest.approx(1)
    assert routing.agreement(a, rng.integers(0, 4, 40_000)) < 0.001
    assert routing.agreement(a, np.zeros_like(a)) == 0
    half = np.where(rng.random(40_000) < 0.5, a, rng.integers(0, 4, 40_000))
    assert 0.1 < routing.agreement(a, half) < 0.6


def test_a_dense_model_has_no_routing() -> None:
    assert routing.describe(np.zeros((5, 0, 0), np.uint16), np.arange(5), 0, [], str) == {}
