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


def test_where_dvc_recorded_nothing_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert previous.recorded(Path("out/details.json")) is None
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n", encoding="utf-8")
    assert previous.recorded(Path("out/details.json")) is None  # a lock file, but no repository of DVC


def test_changes_name_what_came_went_and_is_another() -> None:
    before, after = {"a": 1, "b": {"c": 2, "d": [1]}, "e": 5}, {"a": 1, "b": {"c": 3, "d": [1]}, "f": None}
    assert previous.changes(before, after) == [
        {"name": "b.c", "before": 2, "after": 3},
        {"name": "e", "before": 5, "after": None},
    ]
