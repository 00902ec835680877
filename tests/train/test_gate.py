"""The routing gate looks after its grace, at several readings together, and says what is wrong."""

from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.model.routing import RoutingStats
from pipeline.params import RoutingGate
from pipeline.train.gate import Gate


def gate(**changes: Any) -> Gate:
    limits = {"action": "warn", "grace": 0.5, "max_dead_experts": 0, "max_violation": 1.5, "min_load_entropy": 0.8}
    return Gate(RoutingGate(**(limits | changes)), total_steps=100)


def layer(*tokens: int) -> list[RoutingStats]:
    return [RoutingStats(list(tokens), [0.25] * 4, 0.9, 0.5)]


EVEN, DEAD, UNEVEN = layer(10, 10, 10, 10), layer(20, 20, 0, 20), layer(37, 1, 1, 1)


def test_even_routing_passes() -> None:
    g = gate()
    for step in range(10, 101, 10):
        g.look(step, EVEN)
    report = g.report()
    assert report["gate"] == "passed" and report["looks"] == 6
    assert report["layers"][0]["load_entropy"] == 1.0 and report["layers"][0]["max_violation"] == 0.0


def test_nothing_is_said_before_the_grace_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    g = gate()
    for step in range(10, 50, 10):
        g.look(step, DEAD)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("reading", "words"),
    [(DEAD, "1 experts see no token"), (UNEVEN, r"violation 2\.70 \(max 1\.5\).*load entropy 0\.\d+ \(min 0\.8\)")],
)
def test_a_broken_limit_fails_the_stage_with_layer_and_figure(reading: list[RoutingStats], words: str) -> None:
    g = gate(action="fail")
    g.look(60, reading)
    g.look(70, reading)
    with pytest.raises(UserError, match=f"step 80: MoE layer 0: {words}"):
        g.look(80, reading)


def test_one_bad_reading_among_good_ones_is_no_verdict() -> None:
    g = gate(action="fail")
    for step, reading in ((60, EVEN), (70, DEAD), (80, EVEN), (90, EVEN)):
        g.look(step, reading)
    assert g.report()["gate"] == "passed"


def test_a_warning_comes_once_and_the_report_counts(capsys: pytest.CaptureFixture[str]) -> None:
    g = gate()
    for step in range(50, 101, 10):
        g.look(step, DEAD)
    assert capsys.readouterr().err.count("routing at step") == 1
    assert (g.report()["gate"], g.report()["looks_violated"]) == ("violated", 4)


@pytest.mark.parametrize("action", ["warn", "fail"])
def test_too_few_readings_are_no_pass(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    g = gate(action=action)
    for step in (50, 100):
        g.look(step, EVEN)
    assert g.report()["gate"] == "not looked at" and g.report()["looks"] == 0
    assert "needs 3 readings and the run made 2; a lower train.log_every" in capsys.readouterr().err


def test_a_run_that_ends_within_its_grace_was_not_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    g = gate(action="fail")
    for step in (10, 20, 30, 40):
        g.look(step, DEAD)
    assert g.report()["gate"] == "not looked at"
    assert "before the run was past its grace" in capsys.readouterr().err


def test_a_model_without_experts_has_nothing_to_look_at(capsys: pytest.CaptureFixture[str]) -> None:
    g = gate(action="fail")
    for step in (60, 80, 100):
        g.look(step, [])
    assert g.report()["gate"] == "off" and capsys.readouterr().err == ""


def test_its_state_survives_a_checkpoint() -> None:
    one, other = gate(), gate()
    for step in (60, 70, 80):
        one.look(step, DEAD)
    other.load(one.state())
    assert other.report() == one.report()
