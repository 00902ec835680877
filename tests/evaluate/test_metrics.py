"""Every figure against a slow computation in float64 that takes one token at a time."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate import metrics, scoring
from pipeline.evaluate.scoring import Scores, Window, score
from pipeline.model.build import MoEGPT

CPU = [torch.device("cpu")]
N_TOKENS = 211  # four windows of 48 and a rest


@pytest.fixture(scope="module")
def tokens_N(model: MoEGPT) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 512, N_TOKENS)


def one_at_a_time(model: MoEGPT, context: np.ndarray, token: int) -> tuple[float, float, bool]:
    """-log p, the largest probability, and whether it is the token's, of a float64 model given a context."""
    with torch.inference_mode():
        logits_V = model(torch.from_numpy(context)[None])[0, -1]
        p_V = torch.softmax(logits_V, -1)
    return -math.log(p_V[token]), float(p_V.max()), int(p_V.argmax()) == token


@pytest.mark.parametrize("stride", [None, 48, 20, 1])
def test_each_token_but_the_first_is_scored_once_as_in_float64(
    model: MoEGPT, tokens_N: np.ndarray, stride: int | None
) -> None:
    scores = score(model, tokens_N, Window(48, stride), 3, CPU)
    exact = copy.deepcopy(model).double().eval()
    assert len(scores) == N_TOKENS - 1
    step = stride or 48
    for i in [0, 1, 46, 47, 48, 49, 95, 96, 97, 100, 150, 192, 193, 208, 209]:  # token i + 1
        window = max(0, math.ceil((i + 1 - 48) / step))  # the first window that reaches so far
        begin = window * step
        nats, top, correct = one_at_a_time(exact, tokens_N[begin : i + 1], tokens_N[i + 1])
        assert scores.context_N[i] == i + 1 - begin
        assert scores.nats_N[i] == pytest.approx(nats, abs=2e-5)
        assert scores.top_N[i] == pytest.approx(top, rel=2e-5)
        assert scores.correct_N[i] == correct
    if stride:
        assert scores.context_N[48:].min() >= 48 - stride + 1


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 400), st.integers(1, 50), st.data())
def test_windows_score_each_token_once_with_enough_context(n_tokens: int, block: int, data: st.DataObject) -> None:
    stride = data.draw(st.none() | st.integers(1, block))
    scored = []
    for begin, end, first in Window(block, stride).spans(n_tokens):
        assert 1 <= end - begin <= block
        assert first == 1 or first - begin >= (1 if stride is None else block - stride + 1)
        scored += range(first, end + 1)
    assert scored == list(range(1, n_tokens))


def test_more_devices_and_other_batches_give_the_same(model: MoEGPT, tokens_N: np.ndarray) -> None:
    one = score(model, tokens_N, Window(48, None), 2, CPU)
    three = score(model, tokens_N, Window(48, None), 2, CPU * 3)
    for field in ("nats_N", "top_N", "correct_N", "context_N", "choices_NLK"):
        np.testing.assert_array_equal(getattr(one, field), getattr(three, field))
    larger = score(model, tokens_N, Window(48, None), 4, CPU)
    np.testing.assert_allclose(one.nats_N, larger.nats_N, atol=1e-5)


def test_a_document_mask_leaves_out_what_came_before_the_document(model: MoEGPT, tokens_N: np.ndarray) -> None:
    end = int(tokens_N[60])
    scores = score(model, tokens_N, Window(48, None), 3, CPU, eos_id=end)
    exact = copy.deepcopy(model).double().eval()
    for i in [60, 61, 70, 95]:  # the window begins at 48, the document after token 60
        begin = 48 if i == 60 else 61
        assert scores.context_N[i] == i + 1 - begin
        assert scores.nats_N[i] == pytest.approx(
            one_at_a_time(exact, tokens_N[begin : i + 1], tokens_N[i + 1])[0], abs=2e-5
        )


def test_logits_in_pieces_change_nothing(model: MoEGPT, tokens_N: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(model, tokens_N, Window(48, None), 3, CPU)
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 512 * 13)
    np.testing.assert_allclose(score(model, tokens_N, Window(48, None), 3, CPU).nats_N, whole.nats_N, atol=1e-6)


def test_a_single_token_cannot_be_scored(model: MoEGPT) -> None:
    with pytest.raises(ValueError, match="at least two"):
        score(model, np.array([3]), Window(48, None), 3, CPU)


def made_up(nats: list[float], top: list[float], correct: list[bool], context: list[int]) -> Scores:
    return Scores(
        np.array(nats, np.float32),
        np.array(top, np.float32),
        np.array(correct),
        np.array(context, np.int32),
        np.zeros((len(nats), 0, 0), np.uint16),
    )


def test_summary_by_hand() -> None:
    found = metrics.summary(made_up([math.log(2), math.log(8)], [0.5, 0.25], [True, False], [1, 2]), n_bytes=5)
    assert found["loss"] == pytest.approx(math.log(4))
    assert found["perplexity"] == pytest.approx(4)
    assert found["bits_per_byte"] == pytest.approx(4 / 5)  # one bit and three bits
    assert found["accuracy"] == 0.5
    assert (found["tokens"], found["bytes"]) == (2, 5)


def test_calibration_by_hand() -> None:
    scores = made_up([1.0] * 4, [0.95, 0.91, 0.29, 0.31], [True, False, False, False], [1] * 4)
    found = metrics.calibration(scores, n_bins=10)
    high, low = (0.95 + 0.91) / 2, (0.29 + 0.31) / 2
    assert found["ece"] == pytest.approx((2 * abs(high - 0.5) + 2 * low) / 4)
    assert [(b["tokens"], b["accuracy"]) for b in found["bins"]] == [(1, 0.0), (1, 0.0), (2, 0.5)]


def test_a_model_that_states_its_true_odds_is_calibrated() -> None:
    rng = np.random.default_rng(1)
    top = rng.uniform(0.05, 1, 50_000)
    scores = made_up([1.0] * len(top), top.tolist(), (rng.random(len(top)) < top).tolist(), [1] * len(top))
    assert metrics.calibration(scores)["ece"] < 0.01


def test_positions_and_groups_add_up_to_the_whole(model: MoEGPT, tokens_N: np.ndarray) -> None:
    scores = score(model, tokens_N, Window(48, None), 3, CPU)
    total = float(scores.nats_N.sum(dtype=np.float64))
    positions = metrics.loss_by_position(scores)
    assert [p["context"] for p in positions] == list(range(1, 49))
    assert sum(p["loss"] * p["tokens"] for p in positions) == pytest.approx(total)
    group_N = np.arange(len(scores)) % 3 * 2  # groups 0, 2, 4; 1 and 3 are empty
    groups = metrics.loss_by_group(scores, group_N, np.array([10, 1, 20, 1, 30]))
    assert [g["group"] for g in groups] == [0, 2, 4]
    assert sum(g["bits_per_byte"] * g["bytes"] for g in groups) * math.log(2) == pytest.approx(total)
    assert groups[1]["loss"] == pytest.approx(float(scores.nats_N[1::3].mean(dtype=np.float64)))
