"""Sources: every origin and format gives the same shards, and what is broken is named with its place."""

import hashlib
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import TypeAdapter

from pipeline import params
from pipeline.documents import shards
from pipeline.download.sources import SCHEMA, download
from pipeline.errors import UserError
from pipeline.storyteller.stories import stories
from pipeline.tracking import exchange
from tests.documents.formats import FORMATS, PARAGRAPHS, STORIES, as_jsonl, as_text

ROOT = Path(__file__).parents[2]


def preset(name: str, **changes: Any) -> Any:
    text = (ROOT / f"configs/download/{name}.yaml").read_text(encoding="utf-8")
    return TypeAdapter(params.Download).validate_python({**yaml.safe_load(text), "watch": "-", **changes})


def from_artifact(wanted: Any, into: Path, folder: Path) -> dict[str, Any]:
    """Download from an artifact whose files lie in a folder already (tests/tracking fetches them over the network)."""
    fetched = exchange.Source(folder, wanted.artifact, "0" * 64, {})
    with mock.patch.object(exchange, "source_artifact", return_value=fetched):
        return download(wanted, into)


def raw(folder: Path) -> pa.Table:
    return pa.concat_tables(shards.tables(folder))


def texts(folder: Path) -> list[str]:
    return raw(folder).column("text").to_pylist()


def read(path: Path, into: Path, **changes: Any) -> list[str]:
    download(preset("local", path=str(path), **changes), into)
    return texts(into)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_shards(name: str, tmp_path: Path) -> None:
    (tmp_path / "stories.jsonl").write_bytes(as_jsonl(STORIES))
    download(preset("local", path=str(tmp_path / "stories.jsonl")), tmp_path / "expected")
    path = tmp_path / name
    path.write_bytes(FORMATS[name])
    report = download(preset("local", path=str(path)), tmp_path / "raw")
    assert texts(tmp_path / "raw") == STORIES
    assert report["sources"] == {"stories": 50}
    shard = "part-00000.parquet"
    assert (tmp_path / "raw" / shard).read_bytes() == (tmp_path / "expected" / shard).read_bytes()


def test_the_manifest_says_where_each_byte_came_from(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a-00001-of-00002.txt", "a-00002-of-00002.txt", "b.txt", ".hidden.txt", "picture.png"):
        (tmp_path / "in" / name).write_bytes(as_text([f"Of {name}", "And more."]))
    report = download(preset("local", path=str(tmp_path / "in")), tmp_path / "raw")
    manifest = json.loads((tmp_path / "raw/manifest.json").read_text())
    assert [file["name"] for file in manifest["files"]] == ["a-00001-of-00002.txt", "a-00002-of-00002.txt", "b.txt"]
    for file in manifest["files"]:
        data = (tmp_path / "in" / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert file["documents"] == 2
    assert report["sources"] == {"a": 4, "b": 2}
    written = (tmp_path / "raw" / manifest["shards"][0]["name"]).read_bytes()
    assert manifest["shards"][0]["sha256"] == hashlib.sha256(written).hexdigest()
    assert (manifest["documents"], manifest["bytes"]) == (
        6,
        sum(len(text.encode()) for text in texts(tmp_path / "raw")),
    )


def test_a_glob_names_files(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.md"):
        (tmp_path / name).write_text(f"Text of {name}")
    assert read(tmp_path / "*.txt", tmp_path / "raw") == ["Text of a.txt", "Text of b.txt"]


def test_bundled_stories_come_with_their_entropy(tmp_path: Path) -> None:
    report = download(preset("bundled", documents=40), tmp_path / "raw")
    told = list(stories(40, 0))
    assert texts(tmp_path / "raw") == [story.text for story in told]
    bits = sum(story.bits for story in told) / sum(len(story.text.encode()) for story in told)
    assert report["entropy_bits_per_byte"] == pytest.approx(bits)
    assert report["sources"] == {"storyteller": 40}


def test_bounds_and_the_sample_hold_for_every_source(tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_bytes(as_jsonl(STORIES))
    assert read(path, tmp_path / "raw", max_documents=7) == STORIES[:7]
    size = sum(len(text.encode()) for text in STORIES[:5])
    assert read(path, tmp_path / "raw", max_bytes=size) == STORIES[:5]
    assert read(path, tmp_path / "raw", max_bytes=size - 1) == STORIES[:4]
    half = read(path, tmp_path / "raw", sample_fraction=0.5)
    assert 12 <= len(half) <= 38 and half == [text for text in STORIES if text in half]
    assert half != read(path, tmp_path / "raw", sample_fraction=0.5, seed=1)
    smaller = read(path, tmp_path / "raw", sample_fraction=0.25)
    assert set(smaller) < set(half)
    download(preset("bundled", documents=40, max_documents=3), tmp_path / "raw")
    assert len(texts(tmp_path / "raw")) == 3


def test_a_clean_artifact_keeps_its_splits_and_sources(tmp_path: Path) -> None:
    for split, documents in (("train", STORIES[:40]), ("val", STORIES[40:])):
        folder = tmp_path / "artifact" / split
        with shards.Shards(folder, pa.schema([("text", pa.string()), ("source", pa.string())])) as out:
            out.write(pa.table({"text": documents, "source": ["book"] * len(documents)}))
    wanted = preset("wandb", artifact="team/project/clean:v3")
    report = from_artifact(wanted, tmp_path / "raw", tmp_path / "artifact")
    table = raw(tmp_path / "raw")
    assert table.column("split").to_pylist() == ["val"] * 10 + ["train"] * 40
    assert report["sources"] == {"book": 50} and report["revision"] == "team/project/clean:v3"
    again = from_artifact(wanted, tmp_path / "again", tmp_path / "raw")  # a raw artifact
    assert again["splits"] == {"val": 10, "train": 40}
    bounded = preset("wandb", artifact="team/project/clean:v3", max_documents=20)
    for artifact in ("artifact", "raw"):
        assert from_artifact(bounded, tmp_path / "some", tmp_path / artifact)["splits"] == {"val": 2, "train": 18}


def test_a_small_bound_leaves_both_splits_a_document_or_is_refused(tmp_path: Path) -> None:
    raw_artifact = tmp_path / "raw"
    with shards.Shards(raw_artifact, SCHEMA) as out:
        for row, (text, split) in enumerate(
            [("v" * 50, "val"), ("w" * 50, "val"), ("t" * 60, "train"), ("u", "train")]
        ):
            out.write(pa.table({"row": [row], "text": [text], "source": ["book"], "split": [split]}))

    def bounded(**bound: int) -> dict[str, int]:
        wanted = preset("wandb", artifact="team/project/raw:v1", **bound)
        return from_artifact(wanted, tmp_path / "some", raw_artifact)["splits"]

    assert bounded(max_documents=2) == {"val": 1, "train": 1}
    assert bounded(max_bytes=110) == {"val": 1, "train": 1}
    with pytest.raises(UserError, match=r"download\.max_documents = 1: val takes it; allowed: at least 2"):
        bounded(max_documents=1)
    with pytest.raises(UserError, match=r"max_bytes = 100: the first document of .* has 60 bytes beside 50 of val"):
        bounded(max_bytes=100)
    with pytest.raises(UserError, match=r"max_bytes = 40: the first document of part-0.* has 50 bytes; raise"):
        bounded(max_bytes=40)


def test_a_damaged_artifact_is_named_with_its_row(tmp_path: Path) -> None:
    wanted = preset("wandb", artifact="team/project/clean:v3")
    (tmp_path / "train").mkdir()
    file = tmp_path / "train/part-00000.parquet"
    pq.write_table(pa.table({"text": ["a", None], "source": ["book", "book"]}), file)
    with pytest.raises(UserError, match=r"train/part-00000\.parquet: row 1 has no text"):
        from_artifact(wanted, tmp_path / "raw", tmp_path)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"train/part-00000\.parquet: damaged"):
        from_artifact(wanted, tmp_path / "raw", tmp_path)


def test_a_guess_is_reported_though_a_bound_ends_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(PARAGRAPHS))
    report = download(preset("local", path=str(tmp_path / "a.txt"), max_documents=3), tmp_path / "raw")
    assert [guess.split(":")[0] for guess in report["guessed_split"]] == ["blank_lines"]


def test_a_folder_of_one_story_files_gives_a_document_a_file(tmp_path: Path) -> None:
    for number, story in enumerate(STORIES):
        (tmp_path / f"{number:03}.txt").write_text(f"{story}\n\nAnd more.")
    report = download(preset("local", path=str(tmp_path)), tmp_path / "out/raw")
    assert texts(tmp_path / "out/raw") == [f"{story}\n\nAnd more." for story in STORIES]
    assert report["guessed_split"] == {"whole: the files are short, and each is one document": len(STORIES)}


def test_the_report_counts_documents_without_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "A story."}\n{"text": null}\n{"text": " "}\n')
    pq.write_table(pa.table({"text": ["Another.", None]}), tmp_path / "b.parquet")
    report = download(preset("local", path=str(tmp_path)), tmp_path / "out/raw")
    assert (report["documents"], report["dropped"]) == (2, {"null": 2, "empty or only white space": 1})


def test_what_a_folder_holds_besides_is_left_out_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.txt", "README.md", "LICENSE", "table.csv", "more.csv"):
        (tmp_path / name).write_text(f"Text of {name}")
    assert read(tmp_path, tmp_path / "out/raw") == ["Text of a.txt"]
    warned = capsys.readouterr().err
    assert "left out: more.csv, table.csv: unknown type of file; allowed: .txt" in warned
    assert "left out: LICENSE, README.md: about the data" in warned
    assert read(tmp_path / "README.md", tmp_path / "out/raw") == ["Text of README.md"]


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read(tmp_path / "absent.txt", tmp_path / "raw")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    with pytest.raises(UserError, match=r"matches download\.pattern = '\*\.csv'"):
        read(tmp_path / "in", tmp_path / "raw", pattern="*.csv")
