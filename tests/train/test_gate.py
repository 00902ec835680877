"""The routing gate checks after its grace, several logs together, and says what is wrong."""

from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.model.routing import RoutingStats
from pipeline.params import RoutingGate
from pipeline.train.gate import Gate


def gate(**changes: Any) -> Gate:
    limits = {"action": "warn", "grace": 0.5, "max_dead_experts": 0, "max_violation": 1.5, "min_load_entropy": 0.8}
    return Gate(RoutingGate(**(limits | changes)), total_steps=100, moe_layers=[1])


def layer(*tokens: int) -> list[RoutingStats]:
    return [RoutingStats(list(tokens), [0.25] * 4, 0.9, 0.5)]


EVEN, DEAD, UNEVEN = layer(10, 10, 10, 10), layer(20, 20, 0, 20), layer(37, 1, 1, 1)


def test_even_routing_passes() -> None:
    g = gate()
    for step in range(10, 101, 10):
        g.check(step, EVEN)
    report = g.report()
    assert report["gate"] == "passed" and report["checks"] == 6
    assert report["layers"][0]["load_entropy"] == 1.0 and report["layers"][0]["max_violation"] == 0.0


def test_nothing_is_said_before_the_grace_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    g = gate()
    for step in range(10, 50, 10):
        g.check(step, DEAD)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("routing", "words"),
    [(DEAD, "1 experts get no token"), (UNEVEN, r"violation 2\.70 \(max 1\.5\).*load entropy 0\.\d+ \(min 0\.8\)")],
)
def test_a_broken_limit_fails_the_stage_with_layer_and_figure(routing: list[RoutingStats], words: str) -> None:
    g = gate(action="fail")
    g.check(60, routing)
    g.check(70, routing)
    with pytest.raises(UserError, match=f"step 80: layer 1: {words}"):
        g.check(80, routing)


def test_one_bad_log_among_good_ones_is_no_verdict() -> None:
    g = gate(action="fail")
    for step, routing in ((60, EVEN), (70, DEAD), (80, EVEN), (90, EVEN)):
        g.check(step, routing)
    assert g.report()["gate"] == "passed"


def test_a_warning_comes_once_and_the_report_counts(capsys: pytest.CaptureFixture[str]) -> None:
    g = gate()
    for step in range(50, 101, 10):
        g.check(step, DEAD)
    assert capsys.readouterr().err.count("routing at step") == 1
    assert (g.report()["gate"], g.report()["checks_violated"]) == ("violated", 4)


@pytest.mark.parametrize("action", ["warn", "fail"])
def test_too_few_logs_are_no_pass(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    g = gate(action=action)
    for step in (50, 100):
        g.check(step, EVEN)
    assert g.report()["gate"] == "not checked" and g.report()["checks"] == 0
    assert "takes the last 3 logs, and the run has 2; lower train.log_every" in capsys.readouterr().err


def test_a_run_that_ends_within_its_grace_was_not_checked(capsys: pytest.CaptureFixture[str]) -> None:
    g = gate(action="fail")
    for step in (10, 20, 30, 40):
        g.check(step, DEAD)
    assert g.report()["gate"] == "not checked"
    assert "ended within the grace" in capsys.readouterr().err


def test_a_model_without_experts_has_nothing_to_check(capsys: pytest.CaptureFixture[str]) -> None:
    g = gate(action="fail")
    for step in (60, 80, 100):
        g.check(step, [])
    assert g.report()["gate"] == "off" and capsys.readouterr().err == ""


def test_its_state_survives_a_checkpoint() -> None:
    one, other = gate(), gate()
    for step in (60, 70, 80):
        one.check(step, DEAD)
    other.load(one.state())
    assert other.report() == one.report()
