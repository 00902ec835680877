"""The house: for each room of code, an edit there runs just the stages again that the plan names."""

import contextlib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STAGES = ["download", "clean", "tokenize", "train", "evaluate", "export"]
FINETUNE = [
    "finetune/dvc.yaml:instruct",
    "finetune/dvc.yaml:finetune",
    "finetune/dvc.yaml:evaluate",
    "finetune/dvc.yaml:export",
]
INSTRUCT, FINETUNED, COMPARED, EXPORTED = FINETUNE
ROOMS = {  # place → the stages that depend on it, as docs/design.md has it
    "stages/download.py": ["download"],
    "stages/clean.py": ["clean"],
    "stages/tokenize.py": ["tokenize"],
    "stages/train.py": ["train"],
    "stages/evaluate.py": ["evaluate"],
    "stages/export.py": ["export"],
    "stages/instruct.py": [INSTRUCT],
    "stages/finetune.py": [FINETUNED],
    "stages/evaluate_finetuned.py": [COMPARED],
    "stages/export_finetuned.py": [EXPORTED],
    "pipeline/download": ["download", INSTRUCT],
    "pipeline/storyteller": ["download", INSTRUCT, COMPARED],
    "pipeline/documents": ["download", "clean", INSTRUCT],
    "pipeline/clean": ["clean"],
    "pipeline/tokenize": ["tokenize", INSTRUCT],
    "pipeline/tokens": ["tokenize", "train", "evaluate", "export", *FINETUNE],
    "pipeline/model": ["train", "evaluate", "export", *FINETUNE],
    "pipeline/train": ["train", FINETUNED],
    "pipeline/generate": ["evaluate", COMPARED],
    "pipeline/evaluate": ["evaluate", COMPARED],
    "pipeline/huggingface": ["evaluate", "export", FINETUNED, EXPORTED],
    "pipeline/export": ["export", EXPORTED],
    "pipeline/instruct": [INSTRUCT],
    "pipeline/finetune": [FINETUNED],
    "pipeline/finetuned": [COMPARED],
    "pipeline/files.py": [*STAGES, *FINETUNE],
    "pipeline/hashing.py": ["clean", "train", "export", FINETUNED, EXPORTED],
    "pipeline/hub.py": ["download", "tokenize", INSTRUCT],
    "pipeline/plotting.py": ["clean", "tokenize", "evaluate", COMPARED],
    "pipeline/serve": [],
    "pipeline/params": [],
    "pipeline/tracking": [],
    "pipeline/cli": [],
    "pipeline/stage.py": [],
    "pipeline/console.py": [],
    "pipeline/errors.py": [],
    "stages/__init__.py": [],
    "docs": [],
    "tests": [],
    "benchmarks": [],
    "README.md": [],
}


def changed(folder: Path) -> list[str]:
    """The stages that `dvc repro` would run for their own sake, in order."""
    from dvc.repo import Repo

    with contextlib.chdir(folder), Repo() as repo:
        status = repo.status()
        return [stage for stage in [*STAGES, *FINETUNE] if stage in status]


def test_after_a_run_nothing_runs_again(clone: Path) -> None:
    assert changed(clone) == []


def test_the_plan_names_every_place_with_code(clone: Path) -> None:
    places = {f"{top}/{path.name}" for top in ("pipeline", "stages") for path in (clone / top).iterdir()}
    assert places - {"pipeline/__init__.py", "pipeline/py.typed"} == {p for p in ROOMS if p.startswith(("pipe", "st"))}


@pytest.mark.parametrize("place", ROOMS)
def test_an_edit_runs_the_stages_again_that_the_plan_names(clone: Path, place: str) -> None:
    path = clone / place
    edited = path if path.is_file() else sorted(file for file in path.rglob("*.*") if file.suffix in (".py", ".md"))[-1]
    before = edited.read_bytes()
    edited.write_bytes(before + b"\n# an edit\n")
    try:
        assert changed(clone) == ROOMS[place]
    finally:
        edited.write_bytes(before)
    if path.is_dir() and ROOMS[place]:
        (path / "one_more.py").write_text("", encoding="utf-8")
        try:
            assert changed(clone) == ROOMS[place]
        finally:
            (path / "one_more.py").unlink()


@pytest.mark.parametrize(
    "name", ["__pycache__/loop.cpython-311.pyc", ".loop.py.swp", "loop.py~", "#loop.py#", ".DS_Store"]
)
def test_what_python_and_editors_leave_runs_nothing(clone: Path, name: str) -> None:
    path = clone / "pipeline" / "train" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    try:
        assert changed(clone) == []
    finally:
        path.unlink()


def test_dvc_yaml_is_read_at_a_glance() -> None:
    text = (ROOT / "dvc.yaml").read_text("utf-8")
    assert len(text.splitlines()) <= 170
    for name, stage in yaml.safe_load(text)["stages"].items():  # of pretraining; finetuning stands on more rooms
        assert len([dep for dep in stage["deps"] if dep.startswith(("pipeline", "stages"))]) <= 8, name


def test_each_plot_that_dvc_draws_is_an_output_of_a_stage() -> None:
    """Of a file that a revision does not have, `dvc plots` warns."""
    project = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))
    outs = [out for stage in project["stages"].values() for out in stage["outs"]]
    files = []
    for plot in project["plots"]:
        files += [plot] if isinstance(plot, str) else [file for entry in plot.values() for file in entry["y"]]
    assert [file for file in files if not any(Path(file).is_relative_to(out) for out in outs)] == []
