"""Own files: which of a folder are read, which are left out and why, and what Git would take."""

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.download import sources
from pipeline.errors import UserError
from tests.download.test_sources import preset, texts


def local(path: object, into: Path, **changes: object) -> dict:
    return sources.download(preset("local", path=str(path), **changes), into)


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'{{"text": "A story in {name}."}}\n' if "jsonl" in name else f"A story in {name}.")
    return folder


def test_hidden_files_and_folders_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    books = write(tmp_path / "books", "a.txt", "more/b.txt", ".c.txt", ".git/d.txt", "more/.ipynb_checkpoints/e.txt")
    write(books, "__MACOSX/f.txt", "README.md", "table.csv")
    report = local(books, tmp_path / "raw")
    assert texts(tmp_path / "raw") == ["A story in a.txt.", "A story in more/b.txt."]
    assert sum(report["left_out"].values()) == 6 and report["left_out"]["about the data, not of it"] == 1
    warned = capsys.readouterr().err
    assert ".git" in warned and ".ipynb_checkpoints" in warned and "hidden" in warned and "table.csv" in warned


def test_a_link_to_a_folder_is_refused_for_dvc_sees_no_edit_behind_it(tmp_path: Path) -> None:
    books = write(tmp_path / "books", "a.txt")
    (books / "more").symlink_to(write(tmp_path / "elsewhere", "b.txt"))
    for path in (books, f"{books}/**/*.txt"):
        with pytest.raises(UserError, match=r"more is a link to a folder\. DVC does not look behind it"):
            local(path, tmp_path / "raw")
    (tmp_path / "mine").symlink_to(tmp_path / "elsewhere")
    assert local(tmp_path / "mine", tmp_path / "raw")["documents"] == 1  # the folder itself may be one


def test_what_is_no_file_is_left_out_with_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    books = write(tmp_path / "books", "a.jsonl", "b.jsonl/part-0.jsonl", "b.jsonl/part-1.jsonl")
    (books / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (books / "z.jsonl").symlink_to(books / "a.jsonl")
    os.mkfifo(books / "pipe.txt")
    for path in (books, f"{books}/*"):
        report = local(path, tmp_path / "raw")
        assert report["documents"] == 3 and report["files"] == 3
        assert report["left_out"] == {"no file, or a link to nothing": 2, "a link to a file that is read already": 1}
    assert "gone.jsonl, pipe.txt: no file, or a link to nothing" in capsys.readouterr().err


def test_a_name_that_is_not_utf8_is_read_and_escaped(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    path = os.fsencode(tmp_path / "books") + b"/caf\xe9.txt"
    with open(path, "w") as out:
        out.write("A story.")
    assert local(tmp_path / "books", tmp_path / "raw")["sources"] == {"caf\\xe9": 1}


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("*.txt", ["a.txt"]),
        ("**/*.txt", ["a.txt", "c/a.txt", "c/d/b.txt"]),
        ("*/[ac].txt", ["c/a.txt"]),
        ("?.txt", ["a.txt"]),
        ("c*", ["c/a.txt", "c/d/b.txt"]),
        ("**", ["a.txt", "c/a.txt", "c/d/b.txt", "e.jsonl"]),
    ],
)
def test_a_glob_takes_the_files_that_it_names(tmp_path: Path, glob: str, names: list[str]) -> None:
    books = write(tmp_path / "books", "a.txt", "c/a.txt", "c/d/b.txt", "e.jsonl")
    local(books / glob, tmp_path / "raw")
    assert texts(tmp_path / "raw") == [f"A story in {name}." for name in names]


@pytest.mark.parametrize(
    "name", ["story(1).txt", "story[1].txt", "故事.txt", "a, b.txt", "~.txt", "x=y.txt", "100%.txt"]
)
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    assert local(tmp_path / name, tmp_path / "out/raw")["documents"] == 1


def test_a_path_that_leads_nowhere_is_named_and_a_number_shown_in_quotes(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"download\.path = '2024_01': no such file or folder; .*-S 'download\.path=\"20"
    ):
        local("2024_01", tmp_path / "raw")
    with pytest.raises(UserError, match=r"absent/.*: no such file or folder"):
        local(tmp_path / "absent/*.txt", tmp_path / "raw")
    with pytest.raises(UserError, match=r"no file of a known type matches download\.path = '\*\.md'"):
        local(write(tmp_path / "books", "a.txt") / "*.md", tmp_path / "raw")


def test_many_files_make_a_short_report_and_a_whole_manifest(tmp_path: Path) -> None:
    books = write(tmp_path / "books", *(f"story of {chr(97 + n // 26)}{chr(97 + n % 26)}.txt" for n in range(300)))
    report = local(books, tmp_path / "raw")
    assert len(report["sources"]) == 21 and report["sources"]["280 others"] == 280
    assert len(str(report)) < 3000


def test_dropped_texts_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "A story."}\n{"text": null}\n{"text": " "}\n{"text": ""}\n')
    report = local(tmp_path / "a.jsonl", tmp_path / "raw")
    assert report["documents"] == 1 and sum(report["dropped"].values()) == 3


# --- what Git would take ----------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    write(tmp_path, "mine.txt", "books/a.txt", "books/b.txt", "data/own/c.txt", "other/d.txt.dvc")
    (tmp_path / ".gitignore").write_text("/raw\n/data/own/*.txt\n")
    return tmp_path


@pytest.mark.parametrize(("path", "what"), [("mine.txt", "mine.txt"), ("books", "2 files"), ("books/*.txt", "2 files")])
def test_text_that_git_would_take_is_refused_with_what_to_do(project: Path, path: str, what: str) -> None:
    with pytest.raises(UserError, match=rf"would commit {what} to Git\. Move it to data/own/.*uv run dvc add"):
        local(path, project / "raw")
    assert not (project / "raw").exists()


def test_text_that_git_ignores_or_that_lies_elsewhere_is_taken(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert local("data/own/c.txt", project / "raw")["documents"] == 1
    assert local("data/own", project / "raw")["documents"] == 1
    elsewhere = write(tmp_path_factory.mktemp("elsewhere"), "e.txt")
    assert local(elsewhere, project / "raw")["documents"] == 1
    (project / ".git").rename(project / "no-git")  # as in a ZIP of the project
    assert local("mine.txt", project / "raw")["documents"] == 1


# --- another corpus than before ---------------------------------------------------------------------------------------


def test_another_corpus_than_that_of_the_last_run_is_told(tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    assert sources.chosen_otherwise(preset("bundled"), lock) == ""
    lock.write_text(
        "stages: {download: {params: {params.yaml: {download: {source: local, path: a.txt, watch: a.txt}}}}}"
    )
    assert sources.chosen_otherwise(preset("bundled"), lock) == "source = local, path = a.txt"
    assert sources.chosen_otherwise(preset("local", path="b.txt"), lock) == "source = local, path = a.txt"
    assert sources.chosen_otherwise(preset("local", path="a.txt", max_documents=3), lock) == ""
