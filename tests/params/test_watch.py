"""Files of the user's: none in a folder that DVC empties, and each where DVC sees an edit."""

import shutil
from pathlib import Path

import pytest
import yaml

from pipeline import params
from pipeline.errors import UserError
from pipeline.params.watch import OUTPUTS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("data/raw", "data/own/books", "models/litgpt", "checkpoints", "configs"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("data/raw/mine.txt", "data/own/a.txt", "data/own/books/b.txt", "checkpoints/c.txt", "mine.txt"):
        (tmp_path / name).write_text("A story.")
    return tmp_path


def validated(path: str, watch: str, section: str = "download") -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    local = yaml.safe_load((ROOT / "configs/download/local.yaml").read_text(encoding="utf-8"))
    if section == "download":
        raw["download"] = local | {"path": path, "watch": watch}
    elif section == "clean":
        raw["clean"] |= {"decontaminate": [path], "watch": watch}
    elif section == "tokenizer":
        raw["tokenizer"] |= {"kind": "pretrained", "vocab_size": None, "path": path, "watch": watch}
    elif section == "evaluate":
        raw["evaluate"] |= {"lm_eval_tasks": [path], "watch": watch}
    else:
        raw["train"] |= {"initial_checkpoint": path}
    params.validate(raw)


def test_the_outputs_are_those_of_the_pipelines() -> None:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("dvc.yaml", "finetune/dvc.yaml")]
    stages = [stage for text in texts for stage in yaml.safe_load(text)["stages"].values()]
    outs = [
        next(iter(o)) if isinstance(o, dict) else o
        for s in stages
        for kind in ("outs", "metrics")
        for o in s.get(kind, [])
    ]
    assert outs and all(any(Path(out).is_relative_to(output) for output in OUTPUTS) for out in outs)
    assert all(any(Path(out).is_relative_to(output) for out in outs) for output in OUTPUTS)


@pytest.mark.parametrize("section", ["download", "clean", "tokenizer", "evaluate", "train"])
@pytest.mark.parametrize(
    "path",
    ["data/raw/mine.txt", "data/own/../raw/mine.txt", "{here}/data/raw/mine.txt", "link/mine.txt", "models/litgpt"],
)
def test_a_file_in_an_output_is_refused_before_dvc_deletes_it(project: Path, section: str, path: str) -> None:
    (project / "link").symlink_to(project / "data/raw")
    with pytest.raises(UserError, match=r"lies in (data/raw|models/litgpt), which the pipeline writes"):
        validated(path.format(here=project), path.format(here=project), section)


def test_a_link_in_an_output_to_a_file_elsewhere_is_refused_too(project: Path) -> None:
    (project / "data/raw/link.txt").symlink_to(project / "mine.txt")
    with pytest.raises(UserError, match="lies in data/raw"):
        validated("data/raw/link.txt", "mine.txt")


@pytest.mark.parametrize("path", [".", "data", "data/*", "{here}"])
def test_a_folder_that_holds_an_output_is_refused(project: Path, path: str) -> None:
    with pytest.raises(UserError, match=r"holds data/raw, which the pipeline writes"):
        validated(path.format(here=project), "data")


@pytest.mark.parametrize("section", ["download", "clean", "tokenizer", "evaluate"])
@pytest.mark.parametrize(
    ("path", "watch"),
    [
        ("mine.txt", "configs"),
        ("data/own/a.txt", "data/own/books"),
        ("data/own/books/../a.txt", "data/own/books"),
        ("data/own/*.txt", "data/own/books"),
        ("data/own/a.txt", "data/own/A.txt"),
        ("outside.txt", "data/own"),
    ],
)
def test_a_watch_that_does_not_hold_the_file_is_refused(project: Path, section: str, path: str, watch: str) -> None:
    (project / "outside.txt").symlink_to(project / "mine.txt")
    with pytest.raises(
        UserError, match=rf"{section}\.watch: .* does not hold .*, so an edit of it would not be noticed"
    ):
        validated(path, watch, section)


@pytest.mark.parametrize(
    ("path", "watch"),
    [
        ("mine.txt", "mine.txt"),
        ("{here}/data/own/a.txt", "data/own"),
        ("data/own/books/../a.txt", "./data/own/"),
        ("data/own/books/*.txt", "{here}/data/own/books"),
        ("linked/b.txt", "data/own"),
        ("data/own", "data/own"),
        ("absent.txt", "configs"),
    ],
)
def test_however_it_is_written_a_watched_file_is_taken(project: Path, path: str, watch: str) -> None:
    (project / "linked").symlink_to(project / "data/own/books")
    validated(path.format(here=project), watch.format(here=project))


def test_a_home_folder_is_meant_by_a_tilde(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project / "data/own"))
    validated("~/a.txt", "data/own/a.txt")
    with pytest.raises(UserError, match=r"does not hold ~/a\.txt"):
        validated("~/a.txt", "mine.txt")
    shutil.rmtree(project / "data/own/books")


def test_what_training_begins_with_may_be_a_checkpoint_of_another_run(project: Path) -> None:
    validated("checkpoints", "-", "train")
    with pytest.raises(UserError, match="lies in checkpoints"):
        validated("checkpoints/c.txt", "checkpoints/c.txt")
