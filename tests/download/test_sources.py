"""Sources: every origin and format gives the same shards, and what is broken is named with its place."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import params
from pipeline.documents import columns, shards, splitting
from pipeline.download.sources import SCHEMA, download
from pipeline.errors import UserError
from pipeline.storyteller.stories import stories
from pipeline.tracking import exchange

ROOT = Path(__file__).parents[2]
STORIES = [f"Once there was a fox named Nr {n}.\n\n“Hello,” said 狐狸 {n * n}." for n in range(50)]
MODELS = {"bundled": params.Bundled, "local": params.Local, "url": params.Url, "wandb": params.Wandb}


def preset(name: str, **changes: Any) -> Any:
    text = (ROOT / f"configs/download/{name}.yaml").read_text(encoding="utf-8")
    return MODELS[name](**{**yaml.safe_load(text), "watch": "-", **changes})


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


def as_jsonl(documents: list[str], column: str = "text") -> bytes:
    return "".join(json.dumps({column: text, "id": 7}) + "\n" for text in documents).encode()


def as_parquet(documents: list[str], column: str = "text") -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(len(documents))), column: documents}), out, row_group_size=7)
    return out.getvalue()


def with_a_broken_page(parquet: bytes) -> bytes:
    """The footer is whole, and the first page does not unpack."""
    return parquet[:40] + bytes(b ^ 0xFF for b in parquet[40:160]) + parquet[160:]


def as_text(documents: list[str]) -> bytes:
    return "\n<|endoftext|>\n".join(documents).encode()


def as_tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def encrypted(archive: bytes) -> bytes:
    """The same zip with the flag that its members are encrypted."""
    marked = bytearray(archive)
    for sign, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        marked[archive.index(sign) + flags] |= 1
    return bytes(marked)


def as_zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


FORMATS = {
    "stories.txt": as_text(STORIES),
    "stories.txt.zst": zstandard.compress(as_text(STORIES)),
    "stories.jsonl": as_jsonl(STORIES),
    "stories.jsonl.gz": gzip.compress(as_jsonl(STORIES)),
    "stories.json": json.dumps([{"text": text} for text in STORIES], indent=1).encode(),
    "stories.parquet": as_parquet(STORIES),
    "stories.parquet.gz": gzip.compress(as_parquet(STORIES)),
    "stories.zip": as_zip(
        {
            "README": b"no data",
            "__MACOSX/x.txt": b"no data",
            "a/part.txt": as_text(STORIES[:9]),
            "b.jsonl": as_jsonl(STORIES[9:]),
        }
    ),
    "stories.tar.gz": gzip.compress(as_tar({"a.parquet": as_parquet(STORIES[:9]), "b.txt": as_text(STORIES[9:])})),
}


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
    with pytest.raises(UserError, match=r"train/part-00000\.parquet: damaged parquet"):
        from_artifact(wanted, tmp_path / "raw", tmp_path)


# --- splitting --------------------------------------------------------------------------------------------------------

PROSE = (
    "It was the best of times and it was, as far as anyone could tell, the\nworst of times; people walked through "
    "the streets of the old town and\nspoke of the weather, which had been strange, and of the harvest that\nwould "
    "soon be brought in. Nobody knew what the winter would bring to\nthem, and nobody asked.\n"
)
PARAGRAPHS = [
    f"Tim and Sue went to park number {n} to play with the big red ball. They ran and laughed all day in the sun."
    for n in range(40)
]


@pytest.mark.parametrize(
    ("text", "how", "documents"),
    [
        ("\n<|endoftext|>\n".join(PARAGRAPHS), "separator", PARAGRAPHS),
        ("\n".join(PARAGRAPHS) + "\n", "lines", PARAGRAPHS),
        ("\n\n".join(PARAGRAPHS), "blank_lines", PARAGRAPHS),
        ("\r\n\r\n".join(PARAGRAPHS), "blank_lines", PARAGRAPHS),
        (PROSE * 4, "whole", [PROSE * 4]),
        ("\n".join([PROSE] * 4), "blank_lines", [PROSE[:-1]] * 4),
        (
            "\n".join("\n\n".join(PARAGRAPHS[n : n + 4]) for n in range(0, 40, 4)),
            "lone_newlines",
            ["\n\n".join(PARAGRAPHS[n : n + 4]) for n in range(0, 40, 4)],
        ),
        ("Only one line", "whole", ["Only one line"]),
    ],
)
def test_how_a_text_falls_into_documents_is_guessed(text: str, how: str, documents: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode())
    report = download(preset("local", path=str(tmp_path / "a.txt")), tmp_path / "raw")
    assert [guess.split(":")[0] for guess in report["guessed_split"]] == [how]
    assert [text.strip("\n") for text in texts(tmp_path / "raw")] == [text.strip("\n") for text in documents]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text("ab. \n<|>é", max_size=30), max_size=8),
    st.sampled_from(["separator", "lines", "blank_lines"]),
    st.integers(1, 7),
)
def test_where_a_chunk_ends_does_not_matter(parts: list[str], how: str, size: int) -> None:
    text = "<|>".join(parts)
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(splitting.split(chunks, how, "<|>")) == list(splitting.split([text], how, "<|>"))
    joined = "".join("".join(splitting.split(chunks, how, "<|>")).split())
    assert joined == "".join(text.replace("<|>", "" if how == "separator" else "<|>").split())


def test_a_guess_is_reported_though_a_bound_ends_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(PARAGRAPHS))
    report = download(preset("local", path=str(tmp_path / "a.txt"), max_documents=3), tmp_path / "raw")
    assert [guess.split(":")[0] for guess in report["guessed_split"]] == ["blank_lines"]


def test_one_huge_line_is_refused_without_holding_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "MAX_DOCUMENT_CHARS", 3_000_000)
    path = tmp_path / "huge.txt.gz"
    with gzip.open(path, "wb") as out:
        for _ in range(200):
            out.write(b"word " * 200_000)
    for how in ("auto", "lines", "whole"):
        with pytest.raises(
            UserError, match=r"huge\.txt\.gz: the document that begins 'word word .*longer than 3,000,000"
        ):
            read(path, tmp_path / "raw", split=how)
    assert not (tmp_path / "raw").exists()


# --- bad input --------------------------------------------------------------------------------------------------------

BAD = {
    "latin1.txt": (
        "One line.\nA caf\xe9.\n".encode("latin-1"),
        r"latin1\.txt: line 2, byte 15: not UTF-8 \(byte 0xe9\)",
    ),
    "cut.txt.gz": (gzip.compress(os.urandom(9000))[:5000], r"cut\.txt\.gz: damaged or cut short|not UTF-8"),
    "cut.jsonl.gz": (gzip.compress(as_jsonl(STORIES * 40))[:-20], r"cut\.jsonl\.gz: damaged or cut short after"),
    "cut.txt.zst": (zstandard.compress(as_text(STORIES))[:-9], r"cut\.txt\.zst: damaged or cut short after"),
    "cut.parquet": (as_parquet(STORIES)[:-50], r"cut\.parquet: damaged parquet"),
    "cut.json": (json.dumps([{"text": "a"}] * 9)[:-1].encode(), r"cut\.json: damaged or cut short after 9"),
    "column.parquet": (as_parquet(STORIES, "body"), r"column\.parquet: no column 'text'; there is id, body"),
    "number.jsonl": (b'{"text": "a"}\n{"text": 3}\n', r"number\.jsonl: line 2: field 'text' is 3, not text"),
    "column.jsonl": (b'{"text": "a"}\n\n{"body": "b"}\n', r"column\.jsonl: line 3: no field 'text'; there is body"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', r"broken\.jsonl: line 2: not JSON"),
    "surrogate.jsonl": (b'{"text": "a\\ud800"}\n', r"surrogate\.jsonl: line 1: not Unicode text"),
    "empty.txt": (b" \n\n", r"no document in .*empty\.txt"),
    "table.xlsx": (b"PK", r"table\.xlsx: unknown type of file; allowed: \.txt"),
    "climbs.zip": (as_zip({"../evil.txt": b"a"}), r"climbs\.zip: \.\./evil\.txt: a path that climbs out"),
    "climbs.tar": (as_tar({"/etc/evil.txt": b"a"}), r"climbs\.tar: /etc/evil\.txt: a path that climbs out"),
    "page.parquet": (with_a_broken_page(as_parquet(STORIES * 9)), r"page\.parquet: damaged parquet after 0 rows"),
    "encrypted.zip": (encrypted(as_zip({"a.txt": b"a"})), r"encrypted\.zip: a\.txt: .*encrypted.*unpack the archive"),
    "about.zip": (as_zip({"README.md": b"About.", "LICENSE.txt": b"Free."}), r"no document in .*about\.zip"),
    "inner.zip": (as_zip({"a/b.jsonl": b"nonsense"}), r"inner\.zip: a/b\.jsonl: line 1: not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_with_its_place_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    data, message = BAD[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "in" / name, tmp_path / "out" / "raw")
    assert list((tmp_path / "out").glob("*")) == [] if (tmp_path / "out").exists() else True


def test_a_text_beyond_the_bound_is_named_whatever_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "MAX_DOCUMENT_CHARS", 2_000_000)
    documents = ["A story.", "long " * 500_000, "Another."]
    files = {
        "a.json": (json.dumps([{"text": text} for text in documents]).encode(), r"a\.json: record 2: longer than"),
        "a.jsonl": (as_jsonl(documents), r"a\.jsonl: the document that begins '{\"text\": \"long long .*longer than"),
        "a.parquet": (as_parquet(documents), r"a\.parquet: row 1: text longer than 2,000,000 characters"),
    }
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            read(tmp_path / name, tmp_path / "raw")


def test_long_rows_are_decoded_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    decoded = columns._decoded
    monkeypatch.setattr(columns, "_BYTES", 1_000_000)
    monkeypatch.setattr(columns, "_decoded", lambda batch, row: sizes.append(len(batch)) or decoded(batch, row))
    documents = [f"{n} " + "word " * 60_000 for n in range(20)]
    out = io.BytesIO()
    pq.write_table(pa.table({"text": documents}), out, use_dictionary=False)
    assert [record["text"] for _, record in columns.records(out, ["text"])] == documents
    assert max(sizes) == 3


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
