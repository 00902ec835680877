"""Each benchmark runs from its command at its smallest and prints its table; what benchmarks train is accepted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.recipe import CORPORA, RECIPES
from benchmarks.train import PRESETS, settings
from pipeline.cli.plan import wanted
from tests.train.small import ROOT

SMALL = (
    *("download.documents=300", "tokenizer.vocab_size=300", "model.block_size=64", "model.n_layer=1"),
    *("model.n_embd=32", "model.n_head=2", "model.n_query_groups=1", "model.moe_intermediate_size=32"),
)


def _run(benchmark: str, *options: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", benchmark, *options]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def _recipe(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    small = [part for setting in SMALL for part in ("-S", setting)]
    return _run("benchmarks.recipe", "--place", str(place), "--tokens", "2560", *small, *options, cwd=place.parent)


def test_what_is_trained_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    presets = [settings(preset, 60, "auto") for preset in PRESETS]
    for chosen in (*presets, *RECIPES.values(), *CORPORA.values()):
        wanted(Path("params.yaml"), [setting for setting in chosen if not setting.startswith("trial=")])


@pytest.mark.timeout(300)
def test_training_speed_is_measured_from_the_command() -> None:
    done = _run("benchmarks.train", "--steps", "4", "--only", "ours", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    row = re.search(r"^\| ours \| ([\d,]+) \| [\d.]+% \| [\d.]+ \|", done.stdout, re.MULTILINE)
    assert row and int(row[1].replace(",", "")) > 10, done.stdout


@pytest.mark.timeout(300)
def test_writing_speed_is_measured_from_the_command(work: Path) -> None:
    done = _run("benchmarks.generate", "--checkpoint", str(work / "models/litgpt"), "--new-tokens", "8", "--turns", "1")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (\d) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", done.stdout, re.MULTILINE)
    assert [prompts for prompts, *_ in rows] == ["1", "8"]
    assert all(int(speed.replace(",", "")) > 0 for _, *speeds in rows for speed in speeds)


@pytest.mark.timeout(300)
def test_serving_speed_is_measured_from_the_command(work: Path) -> None:
    few = ("--clients", "2", "--requests", "1", "--new-tokens", "8", "--turns", "1")
    done = _run("benchmarks.serve", "--checkpoint", str(work / "models/litgpt"), *few)
    assert re.search(r"^\| [\d,]+ tokens/s \| [\d,]+ tokens/s \| [\d.]+ \| \d+ ms \|", done.stdout, re.MULTILINE), (
        done.stderr
    )


@pytest.mark.timeout(600)
def test_figures_of_data_are_measured_from_the_command() -> None:
    done = _run("benchmarks.data", "--documents", "300", "--turns", "1")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| ([\w ]+)[^|]*\| ([\d.,]+) M", done.stdout, re.MULTILINE)
    assert [name.split()[0] for name, _ in rows] == [
        *("cleaning", "cleaning", "tokenizing", "tokenizing", "peak", "peak", "reading"),
    ]  # fmt: skip


@pytest.mark.timeout(300)
def test_recipes_are_trained_and_kept_and_drawn(tmp_path: Path) -> None:
    options = ("--only", "base", "--only", "length ramp", "--picture", str(tmp_path / "recipe.png"))
    done = _recipe(tmp_path / "runs", *options)
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^\| (\w[\w ]+) \| ([\d.]+) \|", done.stdout, re.MULTILINE))
    assert rows.keys() == {"base", "length ramp"} and rows["base"] != rows["length ramp"]
    assert all(1 < float(bits) < 8 for bits in rows.values())
    assert (tmp_path / "recipe.png").read_bytes().startswith(b"\x89PNG")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/stories/*/row.json")}
    assert len(written) == 2
    again = _recipe(tmp_path / "runs", *options)
    assert again.stdout == done.stdout
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/stories/*/row.json")}
    other = _recipe(tmp_path / "runs", "-S", "model.n_layer=2")
    assert other.returncode == 2 and "holds runs with other settings" in re.sub(r"[\s│]+", " ", other.stderr)


def test_what_every_run_sets_is_refused(tmp_path: Path) -> None:
    done = _recipe(tmp_path / "runs", "-S", "train.max_tokens=5")
    assert done.returncode == 2 and "train.max_tokens=5: set for every run" in re.sub(r"[\s│]+", " ", done.stderr)
    assert not (tmp_path / "runs").exists()
