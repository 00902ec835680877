"""`moe use`: a choice stays until it is changed, and one that does not fit changes nothing."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.cli.compose import compose
from pipeline.cli.use import use
from pipeline.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    compose(Path("composed.yaml"), ROOT / "configs")
    monkeypatch.setattr(sys.modules["hydra_plugins.watching"], "PROJECT", tmp_path)  # loaded once for a process
    Path("composed.yaml").unlink()
    return tmp_path


def params(*overrides: str) -> dict:
    """What `dvc exp run` composes from configs/ now."""
    compose(Path("composed.yaml"), Path("configs"), list(overrides))
    return yaml.safe_load(Path("composed.yaml").read_text(encoding="utf-8"))


def test_a_choice_holds_for_later_runs_until_it_is_changed(project: Path) -> None:
    Path("stories.txt").write_text("A story.")
    use(["download=local", "download.path=stories.txt", "train.optimizer.lr=1e-3", "model=moe_30m"])
    for overrides in ([], ["train.seed=1"]):
        found = params(*overrides)
        assert (found["download"]["source"], found["download"]["path"]) == ("local", "stories.txt")
        assert (found["train"]["optimizer"]["lr"], found["model"]["n_layer"]) == (0.001, 6)
    assert yaml.safe_load(Path("params.yaml").read_text())["download"]["path"] == "stories.txt"
    use(["download.max_documents=7"])
    assert (params()["download"]["path"], params()["download"]["max_documents"]) == ("stories.txt", 7)
    use(["download=bundled"])
    assert params()["download"]["source"] == "bundled"


def test_another_preset_for_one_run_keeps_nothing_of_the_choice(project: Path) -> None:
    use(["download=local", "download.path=data/own"])
    assert "path" not in params("download=bundled")["download"]


@pytest.mark.parametrize(
    "name", ["2024", "007", "2024_01", "story(1).txt", "故事.txt", "a b, c.txt", "[x].txt", "~.txt"]
)
def test_a_file_may_have_any_name(project: Path, name: str) -> None:
    Path(name).write_text("A story.")
    use(["download=local", f"download.path={name}"])
    assert str(params()["download"]["path"]) == name


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("download", "allowed: SECTION=PRESET and SECTION.KEY=VALUE; the sections are download, clean"),
        ("data=local", "the sections are download, clean"),
        ("download=locla", "download=locla: no such preset in configs/download; did you mean local?"),
        ("model=huge", "no such preset in configs/model; there is llama3_moe_200m"),
        ("download.pth=a.txt", "download.pth = 'a.txt': no such parameter; did you mean"),
        ("model.n_expert=1", "allowed: 1 to n_expert = 1"),
    ],
)
def test_a_choice_that_does_not_fit_is_named_and_changes_nothing(project: Path, choice: str, words: str) -> None:
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        use(["clean.min_chars=3", choice])
    assert words in str(error.value)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_a_home_folder_is_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", os.fspath(project))
    (project / "s.txt").write_text("A story.")
    use(["download=local", "download.path=~/s.txt"])
    assert params()["download"]["watch"] == str(project / "s.txt")


def test_a_folder_that_dvc_cannot_hash_is_refused_with_the_name(project: Path) -> None:
    for folder, name, words in (
        ("a", b"caf\xe9.txt", "caf\\xe9.txt' is not UTF-8"),
        ("b", b"gone.txt", "a link to nothing"),
    ):
        (project / folder).mkdir()
        os.symlink("nowhere", os.fsencode(project / folder) + b"/" + name)
        with pytest.raises(UserError, match=re.escape(words)):
            use(["download=local", f"download.path={folder}"])
    (project / "c").mkdir()
    (project / "c/故事.txt").write_text("A story.")
    use(["download=local", "download.path=c"])
