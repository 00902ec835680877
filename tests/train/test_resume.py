"""A run that was stopped, in whatever way, ends with the same bytes as one that was not."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.hashing import file_sha256
from pipeline.model import build, cpu_kernels, products, size
from pipeline.params import Params
from pipeline.train import memory, optimizers, plan, resume
from tests.train.small import ROOT, assert_same_bytes, run, tiny, weights

STEPS = 24


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("whole")
    assert run(corpus, out, tiny(max_steps=STEPS))["resumed_from"] is None
    return out


def child(corpus: Path, out: Path, parameters: Params) -> None:
    from pipeline.train.process import Interrupted

    try:
        report = run(corpus, out, parameters)
    except Interrupted as interrupted:
        print(interrupted)
        sys.exit(interrupted.exit_code)
    (out / "report.json").write_text(json.dumps(report))


def progress(out: Path) -> int:
    """The last step in the metrics."""
    for path in out.glob("runs/*/metrics.csv"):
        lines = path.read_text().splitlines()
        return int(lines[-1].split(",")[0]) if len(lines) > 1 and lines[-1].split(",")[0].isdigit() else 0
    return 0


def start(children: Any, corpus: Path, out: Path, parameters: Params, until_step: int) -> Any:
    """Start training in a child; return it when it has done `until_step` steps, or has ended."""
    process = children.Process(target=child, args=(corpus, out, parameters))
    process.start()
    while process.is_alive() and progress(out) < until_step:
        time.sleep(0.005)
    return process


@pytest.mark.timeout(500)
def test_killed_five_times_at_random_steps_it_ends_with_the_same_bytes(
    children: Any, corpus: Path, whole: Path, tmp_path: Path
) -> None:
    chance = random.Random(2)
    kills = sorted(chance.sample(range(2, STEPS), 5))
    for step in kills:
        process = start(children, corpus, tmp_path, tiny(max_steps=STEPS), step)
        time.sleep(chance.random() * 0.02)  # in the middle of a step, or of writing a checkpoint
        os.kill(process.pid, signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
        process.join()
        assert process.exitcode != 0
    process = start(children, corpus, tmp_path, tiny(max_steps=STEPS), STEPS + 1)
    process.join()
    assert process.exitcode == 0
    assert json.loads((tmp_path / "report.json").read_text())["resumed_from"] > 0
    assert_same_bytes(tmp_path, whole)
    assert metrics_without_times(tmp_path) == metrics_without_times(whole)


def metrics_without_times(out: Path) -> list[list[str]]:
    """Rows of metrics.csv but for what depends on the clock; a kill may neither repeat a row nor lose one."""
    (path,) = out.glob("runs/*/metrics.csv")
    rows = [line.split(",") for line in path.read_text().splitlines()]
    timed = {rows[0].index(name) for name in ("seconds", "tokens_per_second", "mfu")}
    return [[value for i, value in enumerate(row) if i not in timed] for row in rows]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to another process")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_writes_a_checkpoint_and_exits_with_its_code(
    children: Any, corpus: Path, whole: Path, tmp_path: Path, number: int, code: int
) -> None:
    parameters = tiny(max_steps=STEPS, checkpoint_every=1000)
    process = start(children, corpus, tmp_path, parameters, 3)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code
    assert not (tmp_path / "model").exists()
    (folder,) = (tmp_path / "runs").iterdir()
    stopped = resume.opened(folder)
    assert 3 <= stopped.step < STEPS
    report = run(corpus, tmp_path, parameters)
    assert report["resumed_from"] == stopped.step
    assert_same_bytes(tmp_path, whole)


def child_with_readers(corpus: Path, out: Path, parameters: Params) -> None:
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # readers of this group, not children of the server
    child(corpus, out, parameters)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to a group of processes")
def test_a_signal_to_the_whole_process_group_leaves_the_readers_alone(
    children: Any, corpus: Path, whole: Path, tmp_path: Path
) -> None:
    parameters = tiny(max_steps=STEPS, checkpoint_every=1000, num_workers=1)
    process = children.Process(target=child_with_readers, args=(corpus, tmp_path, parameters))
    process.start()
    while process.is_alive() and progress(tmp_path) < 3:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 143
    assert run(corpus, tmp_path, parameters)["resumed_from"] >= 3
    assert_same_bytes(tmp_path, whole)


def folder_of(out: Path) -> Path:
    (folder,) = (out / "runs").iterdir()
    return folder


def test_sessions_that_the_clock_stops_go_on_by_the_same_command_and_end_as_one_would(
    corpus: Path, tmp_path: Path
) -> None:
    run(corpus, tmp_path / "one", tiny(max_steps=4))
    parameters, out = tiny(max_steps=4, max_minutes=1e-9, log_every=5), tmp_path / "many"
    for session in range(1, 4):
        report = run(corpus, out, parameters)
        assert report["stopped_by"] == "max_minutes" and report["steps"] == session
        assert not resume.is_finished(folder_of(out))
    assert run(corpus, out, parameters)["stopped_by"] == "max_steps"
    assert resume.is_finished(folder_of(out))
    assert_same_bytes(out, tmp_path / "one")


@pytest.mark.parametrize(("model", "optimizer"), [({}, {"name": "muon"}), ({"router": "sigmoid"}, {})])
def test_moments_of_muon_and_a_routers_bias_are_taken_up_too(
    corpus: Path, tmp_path: Path, model: dict[str, Any], optimizer: dict[str, Any]
) -> None:
    changes = {"model": model, "optimizer": optimizer}
    run(corpus, tmp_path / "whole", tiny(**changes))
    stopped_at(corpus, tmp_path / "stopped", 7, **changes)
    assert run(corpus, tmp_path / "stopped", tiny(**changes))["resumed_from"] == 6
    assert_same_bytes(tmp_path / "stopped", tmp_path / "whole")


def test_a_named_checkpoint_goes_on_with_the_optimizer_settings_that_stand_here(corpus: Path, tmp_path: Path) -> None:
    stopped_at(corpus, tmp_path, 9)
    path = folder_of(tmp_path) / "step-00000008"
    still = tiny(optimizer={"lr": 1e-9, "weight_decay": 0.0, "betas": [0.5, 0.6]})
    run(corpus, tmp_path, still, resume=str(path))
    before = torch.load(path / "state.pt", weights_only=True)["model"]["lm_head.weight"]
    assert weights(tmp_path)["lm_head.weight"].sub(before).abs().max() < 1e-7
    (other,) = [folder for folder in (tmp_path / "runs").iterdir() if folder != path.parent]
    groups = torch.load(resume.opened(other).path / "state.pt", weights_only=True)["optimizers"][0]["param_groups"]
    assert [(group["peak"], group["betas"], group["weight_decay"]) for group in groups] == [(1e-9, (0.5, 0.6), 0.0)] * 2


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = stopped_at(corpus, tmp_path, 9, keep_checkpoints=3)
    state = folder_of(out) / "step-00000008" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100] + b"\0" * 100)
    report = run(corpus, out, tiny(keep_checkpoints=3))
    assert report["resumed_from"] == 6
    assert "step-00000008 is damaged" in capsys.readouterr().err


def stopped_at(corpus: Path, out: Path, step: int, **changes: Any) -> Path:
    """The state on disk of a run that died in step `step` (from 0)."""
    from pipeline.train import step as steps

    class PowerCut(BaseException):
        pass

    original = steps.Step.__call__

    def cut(self: Any, number: int, batches: Any) -> None:
        if number == step:
            raise PowerCut
        original(self, number, batches)

    steps.Step.__call__ = cut  # type: ignore[method-assign]
    try:
        run(corpus, out, tiny(**changes))
    except PowerCut:
        return out
    finally:
        steps.Step.__call__ = original  # type: ignore[method-assign]
    raise AssertionError("the run ended before that step")


def test_the_last_k_checkpoints_are_kept_and_a_finished_run_keeps_one(corpus: Path, tmp_path: Path) -> None:
    stopped_at(corpus, tmp_path, 9, keep_checkpoints=2)
    assert [path.name for path in sorted(folder_of(tmp_path).glob("step-*"))] == ["step-00000006", "step-00000008"]
    run(corpus, tmp_path, tiny())
    assert [path.name for path in folder_of(tmp_path).glob("step-*")] == ["step-00000012"]


def test_never_starts_anew(corpus: Path, tmp_path: Path) -> None:
    stopped_at(corpus, tmp_path, 9)
    assert run(corpus, tmp_path, tiny(), resume="never")["resumed_from"] is None


def test_going_back_to_an_earlier_checkpoint_forgets_the_later_ones(corpus: Path, tmp_path: Path) -> None:
    stopped_at(corpus, tmp_path, 9, keep_checkpoints=5)
    early = folder_of(tmp_path) / "step-00000002"
    parameters = tiny(keep_checkpoints=5, max_minutes=1e-9)
    assert run(corpus, tmp_path, parameters, resume=str(early))["steps"] == 3
    names = [path.name for path in sorted(folder_of(tmp_path).glob("step-*"))]
    assert names == ["step-00000002", "step-00000003"]


def test_a_finished_run_is_not_trained_again(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(corpus, tmp_path, tiny())
    before = (tmp_path / "model" / "lit_model.pth").read_bytes()
    state = folder_of(tmp_path) / "step-00000012" / "state.pt"
    written = state.stat().st_ino
    second = run(corpus, tmp_path, tiny())
    assert state.stat().st_ino == written  # not even replaced by its like: a kill in between would leave none
    assert "was finished before" in capsys.readouterr().out
    assert (tmp_path / "model" / "lit_model.pth").read_bytes() == before
    assert {k: first[k] for k in ("loss", "val_loss", "tokens")} == {
        k: second[k] for k in ("loss", "val_loss", "tokens")
    }


def test_what_only_watches_a_run_does_not_make_it_another(corpus: Path, tmp_path: Path) -> None:
    stopped_at(corpus, tmp_path, 9)
    report = run(corpus, tmp_path, tiny(log_every=3, eval_every=4, checkpoint_every=5, num_workers=1))
    assert report["resumed_from"] == 8


def test_other_parameters_are_another_run(corpus: Path, tmp_path: Path) -> None:
    stopped_at(corpus, tmp_path, 9)
    assert run(corpus, tmp_path, tiny(seed=1))["resumed_from"] is None


def test_a_named_checkpoint_at_this_runs_last_step_is_looked_at_and_saved_as_its_end(
    corpus: Path, tmp_path: Path
) -> None:
    stopped_at(corpus, tmp_path / "a", 9)
    path = folder_of(tmp_path / "a") / "step-00000008"
    report = run(corpus, tmp_path / "b", tiny(max_steps=8), resume=str(path))
    assert report["steps"] == 8 and report["val_loss"] > 0 and report["loss"] > 0
    assert resume.is_finished(folder_of(tmp_path / "b"))
    assert run(corpus, tmp_path / "b", tiny(max_steps=8))["val_loss"] == report["val_loss"]


def test_another_models_checkpoint_is_refused_with_the_fields_that_differ(corpus: Path, tmp_path: Path) -> None:
    stopped_at(corpus, tmp_path, 9)
    with pytest.raises(UserError, match=r"model\.n_expert: 4 there, 2 here") as refusal:
        run(corpus, tmp_path, tiny(model={"n_expert": 2}), resume=str(folder_of(tmp_path)))
    assert "train.seed" not in str(refusal.value)


def test_a_named_checkpoint_may_come_from_a_run_of_other_length(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_at(corpus, tmp_path / "a", 9)
    path = folder_of(tmp_path / "a") / "step-00000006"
    report = run(corpus, tmp_path / "b", tiny(max_steps=10), resume=str(path))
    assert report["resumed_from"] == 6 and report["steps"] == 10
    assert "train.max_steps: 12 there, 10 here" in capsys.readouterr().err


def test_a_path_without_a_checkpoint_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint of a training run"):
        run(corpus, tmp_path, tiny(), resume=str(tmp_path / "nothing"))
    assert list(tmp_path.iterdir()) == []


def code_of_another_version(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Change what the code plans or builds under a fingerprint that stays the same."""
    make, decaying = plan.make, optimizers._decaying

    def with_steps(factor: float) -> Any:
        return lambda *a: dataclasses.replace(make(*a), total_steps=round(factor * make(*a).total_steps))

    def in_one_group(*a: Any) -> list[dict[str, Any]]:
        return [{"params": [p for group in decaying(*a) for p in group["params"]]}]

    change: dict[str, tuple[Any, str, Any]] = {
        "half the steps": (plan, "make", with_steps(0.5)),
        "twice the steps": (plan, "make", with_steps(2)),
        "other MoE layers": (build, "moe_layers", lambda model: [1]),
        "other groups of parameters": (optimizers, "_decaying", in_one_group),
    }
    monkeypatch.setattr(*change[what])


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("half the steps", "is of step 8, and this run has 6 steps"),
        ("other MoE layers", r"does not fit this model: gpt|does not fit this model: transformer\.h\.0\.mlp"),
        ("other groups of parameters", r"AdamW has groups of \[\d+, \d+\] parameters there, \[\d+\] here"),
    ],
)
def test_a_named_checkpoint_that_does_not_fit_is_refused_in_words(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, words: str
) -> None:
    stopped_at(corpus, tmp_path, 9)
    code_of_another_version(monkeypatch, what)
    with pytest.raises(UserError, match=words):
        run(corpus, tmp_path, tiny(), resume=str(folder_of(tmp_path)))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("half the steps", "is of a run of 12 steps, this one has 6"),
        ("twice the steps", "is of a run of 12 steps, this one has 24"),
        ("other MoE layers", "does not fit this model"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_passed_over_and_training_starts_anew(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
    words: str,
) -> None:
    stopped_at(corpus, tmp_path, 9, keep_checkpoints=1)
    code_of_another_version(monkeypatch, what)
    report = run(corpus, tmp_path, tiny())
    assert report["resumed_from"] is None and report["tokens"] == report["steps"] * 8 * 32
    said = capsys.readouterr().err
    assert words in said and "training starts anew" in said


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"step": 8}', b'{"step": "x", "sha256": ""}', b"[" * 100_000],
    ids=["empty", "cut", "list", "not UTF-8", "fields missing", "no number", "deep"],
)
def test_a_damaged_description_of_a_checkpoint_is_refused_in_words(corpus: Path, tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "step-00000008"
    path.mkdir()
    (path / "state.pt").write_bytes(b"")
    (path / "meta.json").write_bytes(damage)
    with pytest.raises(UserError, match="step-00000008 is damaged"):
        resume.opened(path)
    assert not resume.is_finished(tmp_path)


def test_a_checkpoint_that_holds_code_is_refused_without_advice_to_open_it(corpus: Path, tmp_path: Path) -> None:
    stopped_at(corpus, tmp_path, 9)
    path = folder_of(tmp_path) / "step-00000008"
    torch.save({"model": print}, path / "state.pt", pickle_module=pickle)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"sha256": file_sha256(path / "state.pt")}))
    with pytest.raises(UserError, match=r"holds more than tensors.*it is not opened") as refusal:
        run(corpus, tmp_path, tiny(), resume=str(path))
    assert not any(word in str(refusal.value) for word in ("weights_only", "trust", "add_safe_globals"))


def test_an_edit_of_code_that_dvc_trains_again_for_makes_another_run_and_no_other_edit_does(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    before = resume._code_hash(tmp_path)
    rooms = ("files.py", "hashing.py", "model", "tokens", "train")
    for path in sorted((tmp_path / "pipeline").rglob("*.py")):
        whole = path.read_bytes()
        path.write_bytes(whole + b"# edited\n")
        decides = path.relative_to(tmp_path / "pipeline").parts[0] in rooms
        assert (resume._code_hash(tmp_path) != before) == decides, path
        path.write_bytes(whole)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two threads")
def test_a_resumed_run_computes_with_as_many_threads_as_before(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(corpus, tmp_path, tiny(max_steps=2, max_minutes=1e-9), threads=2)
    run(corpus, tmp_path, tiny(max_steps=2), threads=1)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert "computing with 2 threads, as before it was stopped (here it would be 1)" in capsys.readouterr().out


def test_a_run_that_goes_on_multiplies_as_it_began_whatever_is_faster_by_then(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`precision: auto` is settled by a clock, once in a run."""
    settings: dict[str, Any] = {"precision": "auto", "max_steps": 3}
    gains = dict.fromkeys(products.KINDS, 9.0)
    monkeypatch.setattr(products, "probe", lambda *_: gains)
    report = run(corpus, tmp_path / "whole", tiny(**settings))
    assert report["precision"] == "32-true, matmuls in bfloat16" and report["products_in_bfloat16"] == [*gains]
    run(corpus, tmp_path / "stopped", tiny(**settings, max_minutes=1e-9))
    gains = dict.fromkeys(gains, 0.1)
    assert run(corpus, tmp_path / "stopped", tiny(**settings))["products_in_bfloat16"] == [*gains]
    assert_same_bytes(tmp_path / "stopped", tmp_path / "whole")
    assert "faster by: attention 9.0 ×, mlp 9.0 ×" in capsys.readouterr().out
    report = run(corpus, tmp_path / "exact", tiny(**settings))
    assert report["precision"] == "32-true" and report["products_in_bfloat16"] == []
    with pytest.raises(AssertionError):
        assert_same_bytes(tmp_path / "exact", tmp_path / "whole")


def test_a_run_that_goes_on_uses_compiled_kernels_if_it_began_with_them(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"precision": "auto", "max_steps": 3}
    monkeypatch.setattr(products, "probe", lambda *_: {})

    def stopped(place: str) -> None:
        assert run(corpus, tmp_path / place, tiny(**settings, max_minutes=1e-9))["steps"] == 1

    with_kernels = cpu_kernels.load() is None
    assert run(corpus, tmp_path / "whole", tiny(**settings))["compiled_kernels"] == with_kernels
    stopped("resumed")
    stopped("moved")
    stopped("recompiled")
    run(corpus, tmp_path / "resumed", tiny(**settings))
    assert_same_bytes(tmp_path / "resumed", tmp_path / "whole")
    assert "last digits may differ" not in capsys.readouterr().out
    monkeypatch.setattr(cpu_kernels, "key", lambda: "of another compiler")
    run(corpus, tmp_path / "recompiled", tiny(**settings))
    assert ("with those of another source, compiler or processor" in capsys.readouterr().out) == with_kernels
    monkeypatch.setattr(cpu_kernels, "load", lambda: "no C++ compiler is installed")
    report = run(corpus, tmp_path / "moved", tiny(**settings))
    assert not report["compiled_kernels"] and report["steps"] == 3
    assert "no compiled kernels, which make a step shorter by a third or more: no C++ compiler" in (
        said := capsys.readouterr().out
    )
    assert ("begun with compiled kernels, it goes on without: last digits may differ" in said) == with_kernels
    stopped("plain")
    monkeypatch.undo()
    run(corpus, tmp_path / "plain", tiny(**settings))
    run(corpus, tmp_path / "exact", tiny(**settings | {"precision": "32-true"}))
    assert_same_bytes(tmp_path / "plain", tmp_path / "exact")


def test_micro_batches_are_as_large_as_memory_allows_and_stay_so_when_a_run_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"micro_batch_size": "auto", "global_batch_size": 12, "max_steps": 3}
    train = tiny(**settings).train
    resolved = size.resolved(tiny(**settings).model, 257)
    counted = plan.weights(resolved, 257, None)

    def need(size: int) -> int:
        update = {"micro_batch_size": size, "device": "cpu"}
        return memory.needed(resolved, train.model_copy(update=update), counted, 257).total

    assert need(4) < need(5) < need(6)
    monkeypatch.setattr(memory, "available", lambda *_: need(5))  # 5 does not divide 12
    run(corpus, tmp_path / "stopped", tiny(**settings, max_minutes=1e-9))
    assert "train: micro batches of 4, the most that memory suffices for" in capsys.readouterr().out
    monkeypatch.setattr(memory, "available", lambda *_: need(12))
    run(corpus, tmp_path / "stopped", tiny(**settings))
    assert "train: micro batches of 4, the most" in capsys.readouterr().out
    run(corpus, tmp_path / "explicit", tiny(**settings | {"micro_batch_size": 4}))
    assert_same_bytes(tmp_path / "stopped", tmp_path / "explicit")
    monkeypatch.setattr(memory, "available", lambda *_: need(1) - 1)
    with pytest.raises(UserError, match=r"train.micro_batch_size = auto: [\d.]+ MB do not suffice even for"):
        run(corpus, tmp_path / "none", tiny(**settings))


def test_what_changed_meanwhile_ends_training_at_a_checkpoint_that_stays(corpus: Path, tmp_path: Path) -> None:
    def check() -> None:
        raise UserError("params.yaml changed")

    with pytest.raises(UserError, match="yaml changed"):
        run(corpus, tmp_path, tiny(), check=check)
    assert not (tmp_path / "model").exists()
    assert run(corpus, tmp_path, tiny())["resumed_from"] == 2
