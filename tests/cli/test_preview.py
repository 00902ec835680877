"""`moe preview`: what a text gives as documents, before anything is written."""

from pathlib import Path

from typer.testing import CliRunner

from pipeline.cli.app import app
from tests.documents.formats import PARAGRAPHS, STORIES, as_jsonl


def shown(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["preview", *map(str, arguments)])
    return done.exit_code, " ".join(done.output.split())


def test_it_says_the_guess_the_lengths_and_the_first_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(PARAGRAPHS))
    code, text = shown(tmp_path / "a.txt")
    assert code == 0
    assert "split: auto takes lines" in text
    assert "40 documents of 1 file characters: 105 to 106, median 106" in text
    assert f"--- document 3 --- {PARAGRAPHS[2]}" in text and PARAGRAPHS[3] not in text


def test_it_takes_a_folder_and_the_settings_of_download(tmp_path: Path) -> None:
    for number, story in enumerate(STORIES):
        (tmp_path / f"{number:03}.txt").write_text(f"{story}\n\nAnd more.")
    assert "50 documents of 50 files" in shown(tmp_path)[1]
    assert "150 documents of 50 files" in shown(tmp_path, "--split", "blank_lines")[1]
    (tmp_path / "b.jsonl").write_bytes(as_jsonl(["A story.", ""], "body"))
    assert "left out: 1 documents: empty" in shown(tmp_path / "b.jsonl", "--text-column", "body")[1]
    code, text = shown(tmp_path / "b.jsonl")
    assert (code, "no field 'text'; there is body" in text) == (2, True)
    assert "allowed: auto, separator" in shown(tmp_path / "b.jsonl", "--split", "line")[1]
    assert shown(tmp_path / "absent")[0] == 2
