"""The decision to compile: measured on a GPU, counted on a CPU, never without a compiler, kept by a resumption."""

import sys
from typing import Any

import pytest
import torch
from litgpt.model import Block

from pipeline.errors import UserError
from pipeline.model import build
from pipeline.train import wrap
from pipeline.train.wrap import Compiling
from tests.train.small import tiny


class Alone:
    """The Fabric of one process on any device."""

    world_size, is_global_zero = 1, True

    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind)

    def broadcast(self, value: Any) -> Any:
        return value


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time that tests set, a compiler that is there, and blocks that only note that they were compiled."""
    clock = Clock()
    monkeypatch.setattr(wrap, "time", clock)
    monkeypatch.setattr(wrap.hardware, "wait", lambda device: None)
    monkeypatch.setattr(wrap, "lacking", lambda device: None)
    monkeypatch.setattr(Block, "compile", lambda self: setattr(self, "noted", True))
    return clock


def decided(kind: str, choice: str = "auto", run_flops: float = 0.0, before: bool | None = None) -> Compiling:
    model = build.build(tiny().model, 257)
    result = Compiling(model, choice, Alone(kind), run_flops, before)  # type: ignore[arg-type]
    assert all(hasattr(block, "noted") == result.done for block in model.transformer.h)
    return result


@pytest.mark.parametrize(("total", "compiles"), [(1000, True), (300, False)])
def test_on_a_gpu_the_measured_steps_decide(
    clock: Clock, capsys: pytest.CaptureFixture[str], total: int, compiles: bool
) -> None:
    each = decided("cuda")
    for step in range(1, 20):
        clock.now += 30.0 if step <= 3 else 0.5  # the first steps warm up, and are left out
        each.after_step(total - step)
    assert each.done == compiles
    left = total - 9
    saved = left * 0.5 * 0.2
    assert f"{left:,} steps of 0.500 s are left" in capsys.readouterr().out
    assert (saved > 60) == compiles


@pytest.mark.parametrize(("minutes", "compiles"), [(30, False), (50, True)])
def test_on_a_cpu_the_counted_work_of_the_whole_run_decides_at_once(
    clock: Clock, capsys: pytest.CaptureFixture[str], minutes: int, compiles: bool
) -> None:
    work = minutes * 60 * 90e9
    assert decided("cpu", run_flops=work).done == compiles
    assert f"work takes about {minutes} min 0 s on two cores" in capsys.readouterr().out


@pytest.mark.parametrize("before", [True, False])
def test_a_resumed_run_on_a_cpu_stays_as_it_was(clock: Clock, before: bool) -> None:
    assert decided("cpu", run_flops=0.0 if before else 1e18, before=before).done == before


def test_off_holds_for_a_run_that_was_compiled_and_warns_of_last_digits(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not decided("cpu", "off", before=True).done
    assert "train.compile = 'off'): last digits may differ" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="looks for another compiler there")
def test_nothing_is_compiled_without_a_compiler_and_on_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not decided("cpu", run_flops=1e18).done
    assert "not compiled: torch.compile needs a C++ compiler: no-such-compiler" in capsys.readouterr().out
    assert not decided("cpu", before=True).done
    with pytest.raises(UserError, match=r"train.compile = 'on', but torch.compile needs .* take auto or off"):
        decided("cpu", "on")


def test_nothing_is_compiled_for_a_gpu_without_triton(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    each = decided("cuda")
    each.after_step(10**9)  # asks for no device
    assert not each.done and "needs Triton" in capsys.readouterr().out
