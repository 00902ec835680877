"""The run before, as a real DVC recorded it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.evaluate import previous

ROOT = Path(__file__).parents[2]
STAGE = """
import json, pathlib, sys
sys.path.insert(0, {root!r})
from pipeline.evaluate import previous
path = pathlib.Path("out/plots/details.json")
before = previous.recorded(path)
pathlib.Path("seen.txt").open("a").write(json.dumps(before and before["figures"]) + "\\n")
path.parent.mkdir(parents=True, exist_ok=True)
x = int(pathlib.Path("params.yaml").read_text().split()[1])
path.write_text(json.dumps({{"figures": {{"x": x}}}}))
"""


def test_dvc_hands_over_what_the_run_before_wrote(tmp_path: Path) -> None:
    def dvc(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=tmp_path, check=True, capture_output=True)

    dvc("init", "--no-scm", "-q")
    (tmp_path / "run.py").write_text(STAGE.format(root=str(ROOT)), encoding="utf-8")
    stage = {"cmd": f'"{sys.executable}" run.py', "params": ["x"], "outs": ["out/plots"]}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"evaluate": stage}}), encoding="utf-8")
    for x in (1, 2):
        (tmp_path / "params.yaml").write_text(f"x: {x}\n", encoding="utf-8")
        dvc("repro", "-q")
    assert (tmp_path / "seen.txt").read_text().splitlines() == ["null", '{"x": 1}']


@pytest.mark.parametrize("remote", [None, "s3://nowhere/cache", "no-such-folder"])
def test_in_a_clone_without_dvcs_cache_the_stage_runs_and_warns_once(tmp_path: Path, remote: str | None) -> None:
    origin, clone = tmp_path / "origin", tmp_path / "clone"

    def run(folder: Path, *command: str) -> str:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    origin.mkdir()
    dvc = (sys.executable, "-m", "dvc")
    run(origin, "git", "init", "-q")
    run(origin, *dvc, "init", "-q")
    if remote:
        run(origin, *dvc, "remote", "add", "-q", "-d", "shared", remote)
    (origin / "run.py").write_text(STAGE.format(root=str(ROOT)), encoding="utf-8")
    stage = {"cmd": f'"{sys.executable}" run.py', "params": ["x"], "outs": ["out/plots"]}
    (origin / "dvc.yaml").write_text(json.dumps({"stages": {"evaluate": stage}}), encoding="utf-8")
    (origin / "params.yaml").write_text("x: 1\n", encoding="utf-8")
    (origin / ".gitignore").write_text("seen.txt\n", encoding="utf-8")
    run(origin, *dvc, "repro", "-q")
    run(origin, "git", "add", "-A")
    run(origin, "git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "a run")
    run(tmp_path, "git", "clone", "-q", str(origin), str(clone))
    assert run(clone, *dvc, "repro").count("warning: no comparison with the run before") == 1
    assert (clone / "seen.txt").read_text() == "null\n"


def test_where_dvc_recorded_nothing_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert previous.recorded(Path("out/details.json")) is None
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n", encoding="utf-8")
    assert previous.recorded(Path("out/details.json")) is None  # a lock file, but no repository of DVC


def test_figures_of_another_text_or_tokenizer_are_not_compared() -> None:
    figures = {"val": {"bits_per_byte": 1.0, "loss": 2.0}, "routing": {"dead_experts": 1}}
    better = {"val": {"bits_per_byte": 0.5, "loss": 1.0}, "routing": {"dead_experts": 0}}

    def verdicts(**before: str) -> list[str]:
        after = {"figures": better, "val_set": {"text": "a", "tokens": "b"}}
        return [row["verdict"] for row in previous.compared({"figures": figures, "val_set": before}, after)]

    assert verdicts(text="a", tokens="b") == ["better"] * 3
    assert verdicts(text="a", tokens="c") == ["better", "not comparable", "better"]  # bits per byte: any tokenizer
    assert verdicts(text="c", tokens="d") == ["not comparable", "not comparable", "better"]
    assert verdicts() == ["not comparable", "not comparable", "better"]  # recorded before there were digests


def test_changes_name_what_came_went_and_is_another() -> None:
    before, after = {"a": 1, "b": {"c": 2, "d": [1]}, "e": 5}, {"a": 1, "b": {"c": 3, "d": [1]}, "f": None}
    assert previous.changes(before, after) == [
        {"name": "b.c", "before": 2, "after": 3},
        {"name": "e", "before": 5, "after": None},
    ]
