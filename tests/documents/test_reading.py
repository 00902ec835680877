"""Reading: every format gives the same documents; each is counted, refused in words, or there; nothing is lost."""

import errno
import gzip
import io
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.documents import columns, splitting
from pipeline.documents.reading import How, Reader, in_words, not_data, shown
from pipeline.errors import UserError
from tests.documents.formats import FORMATS, STORIES, as_jsonl, as_parquet, as_tar, as_text, as_zip, read

EMPTY = "empty or only white space"


def parquet(column: Any, **more: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": column, **more}), out)
    return out.getvalue()


def with_a_broken_page(parquet: bytes) -> bytes:
    """The footer is whole, and the first page does not unpack."""
    return parquet[:40] + bytes(b ^ 0xFF for b in parquet[40:160]) + parquet[160:]


def encrypted(archive: bytes) -> bytes:
    """The same zip with the flag that its members are encrypted."""
    marked = bytearray(archive)
    for sign, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        marked[archive.index(sign) + flags] |= 1
    return bytes(marked)


def with_window(data: bytes, log: int) -> bytes:
    """Packed by zstd with a window of 2**log bytes, as `zstd --long` packs a stream of unknown length."""
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=log, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return packer.compress(data) + packer.flush()


def as_records(documents: list[Any]) -> list[dict[str, Any]]:
    return [{"text": text} for text in documents]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents(name: str) -> None:
    assert read(FORMATS[name], name) == STORIES


RECORDS = as_records(STORIES)
HALVES = json.dumps(RECORDS[:20]), json.dumps(RECORDS[20:])
SAME = {  # other ways to write the same documents
    "two arrays.json": "\n".join(HALVES).encode(),
    "two arrays in a line.json": "".join(HALVES).encode(),
    "an array on each line.jsonl": "\n".join(json.dumps([record]) for record in RECORDS).encode(),
    "array after space.json": (" \n\t" * 10**6 + json.dumps(RECORDS)).encode(),
    "pretty records.json": "\n".join(json.dumps(record, indent=2) for record in RECORDS).encode(),
    "pretty array.json": json.dumps(RECORDS, indent=4).encode(),
    "records without line ends.jsonl": "".join(map(json.dumps, RECORDS)).encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + as_jsonl(STORIES),
    "two boms.jsonl": b"\xef\xbb\xbf".join([b"", as_jsonl(STORIES[:9]), as_jsonl(STORIES[9:])]),
    "utf16.jsonl": as_jsonl(STORIES).decode().encode("utf-16"),
    "utf16.txt": as_text(STORIES).decode().encode("utf-16"),
    "utf16-be.txt": b"\xfe\xff" + as_text(STORIES).decode().encode("utf-16-be"),
    "utf32.txt": as_text(STORIES).decode().encode("utf-32"),
    "blank lines.jsonl": b"\n\n \n" + as_jsonl(STORIES).replace(b"\n", b"\r\n\r\n"),
    "dictionary.parquet": parquet(pa.array(STORIES).dictionary_encode()),
    "view.parquet": parquet(pa.array(STORIES, pa.string_view())),
    "large.parquet": parquet(pa.array(STORIES, pa.large_string())),
    "binary.parquet": parquet(pa.array([text.encode() for text in STORIES])),
    "binary view.parquet": parquet(pa.array([text.encode() for text in STORIES], pa.binary_view())),
    "long window.jsonl.zst": with_window(as_jsonl(STORIES), 31),
    "two frames.jsonl.zst": zstandard.compress(as_jsonl(STORIES[:9])) + zstandard.compress(as_jsonl(STORIES[9:])),
    "two members.jsonl.gz": gzip.compress(as_jsonl(STORIES[:9])) + gzip.compress(as_jsonl(STORIES[9:])),
    "two.tar": as_tar({"a.jsonl": as_jsonl(STORIES[:9])}) + as_tar({"a.jsonl": as_jsonl(STORIES[9:])}),
    "tar.zip": as_zip({"a.tar.gz": gzip.compress(as_tar({"a.jsonl": as_jsonl(STORIES)}))}),
    "zip.tar.zst": zstandard.compress(as_tar({"a.zip": as_zip({"a.jsonl": as_jsonl(STORIES)})})),
}


@pytest.mark.parametrize("name", SAME)
def test_documents_written_in_another_way_are_the_same(name: str) -> None:
    assert read(SAME[name], name) == STORIES


@pytest.mark.parametrize("packed", [bytes, gzip.compress, zstandard.compress], ids=["", "gz", "zst"])
def test_an_archive_of_one_story_files_gives_a_document_a_file(packed: Any) -> None:
    tales = {f"{number}.txt": f"{story}\n\nAnd more.".encode() for number, story in enumerate(STORIES)}
    ending = {gzip.compress: ".gz", zstandard.compress: ".zst"}.get(packed, "")
    for name, data in (("a.tar", as_tar(tales)), ("a.zip", as_zip(tales))):
        assert read(packed(data), name + ending) == [text.decode() for text in tales.values()]


# --- what is left out -------------------------------------------------------------------------------------------------

ODD = ["One.", None, "", " \n\t ", "Two.", "N\0U\0L\0"]
DROPPED = Counter({"null": 1, EMPTY: 2, "with NUL characters": 1})


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, as_records(ODD))).encode()),
        ("a.json", json.dumps(as_records(ODD)).encode()),
        ("a.parquet", parquet(ODD)),
        ("a.zip", as_zip({"a.parquet": parquet(ODD)})),
    ],
)
def test_documents_without_text_are_dropped_and_counted_in_every_format(name: str, data: bytes) -> None:
    dropped: Counter[str] = Counter()
    assert read(data, name, dropped=dropped) == ["One.", "Two."]
    assert dropped == DROPPED


def test_an_empty_text_file_and_an_empty_place_between_separators_are_counted() -> None:
    for name, data, kept in [
        ("a.txt", b"", []),
        ("a.txt", b" \n\n", []),
        ("a.txt", b"One.<|endoftext|>\n<|endoftext|>\nTwo.<|endoftext|>\n", ["One.", "Two."]),
        ("a.txt", b"One.\n<|endoftext|>\n\n<|endoftext|>\nTwo.\n<|endoftext|>\n", ["One.", "Two."]),
    ]:
        dropped: Counter[str] = Counter()
        assert read(data, name, dropped=dropped) == kept
        assert dropped == {EMPTY: 1}


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (".git/notes.txt", "in a hidden folder"),
        ("a/.ipynb_checkpoints/stories-checkpoint.txt", "in a hidden folder"),
        ("__MACOSX/stories.txt", "in a hidden folder"),
        ("table/_delta_log/0.json", "in a hidden folder"),
        (".stories.txt", "a hidden file"),
        ("a/._stories.txt", "a hidden file"),
        ("README.md", "about the data, not of it"),
        ("picture.png", "unknown type of file"),
        ("a.folder/stories.txt", ""),
        ("./a/stories.txt", ""),
        ("../a/stories.txt", ""),
        ("_stories.txt", ""),
    ],
)
def test_what_is_not_data_is_named_with_the_reason(path: str, why: str) -> None:
    assert not_data(path).split(";")[0] == why


def test_hidden_folders_of_an_archive_are_left_out_with_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    drafts = {f".git/{number}.txt": b"A draft." for number in range(9)}
    for name, data in (("a.zip", as_zip), ("a.tar", as_tar)):
        assert read(data({**drafts, "a.txt": b"A story."}), name) == ["A story."]
        assert capsys.readouterr().err.count("a hidden folder") == 1


# --- bad input --------------------------------------------------------------------------------------------------------

LATIN1 = "One line.\nA caf\xe9.\n".encode("latin-1")
MANY_MEMBERS = as_tar({f"{number}.jsonl": as_jsonl([story]) for number, story in enumerate(STORIES)})
BAD = {
    "latin1.txt": (LATIN1, r"line 2, byte 15: not UTF-8 \(byte 0xe9\); it may be CP1252 \(it would read 'A café"),
    "gbk.txt": (
        "从前有一个孩子，他有一只羊。\n".encode("gbk"),
        "GB18030 .it would read '从前.*iconv -f GB18030",
    ),
    "russian.txt": ("Жили-были дед да баба.\n".encode("cp1251"), r"it may be CP1251 \(it would read 'Жили"),
    "utf16-nobom.txt": ("Once upon a time.\n".encode("utf-16-le") * 9, r"line 1: a NUL character.*it may be UTF-16LE"),
    "utf16-nobom.jsonl": (
        as_jsonl(STORIES).decode().encode("utf-16-be"),
        r"line 1: a NUL character.*it may be UTF-16BE",
    ),
    "one-nul.txt": (b"A story.\n" * 99 + b"\0B.\n", r"line 100: a NUL character.*`tr -d '\\000'` removes"),
    "one-byte.txt": (
        as_text(STORIES)[:-1] + b"\xff.",
        r"not UTF-8 \(byte 0xff\); the rest is UTF-8.*this place is damaged",
    ),
    "noise.txt": (random.Random(0).randbytes(9000), "not UTF-8 .*it is binary, or damaged"),
    "picture.txt": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0" * 9, "not UTF-8 .*it is binary, or damaged"),
    "saved.txt": (b"\xef\xbb\xbf<!-- saved from url=(0022)http://a.b/ -->\n<html>", "content is an HTML page"),
    "cut-utf16.txt": ("A story.".encode("utf-16")[:-1], r"not UTF-16 .*truncated"),
    "controls.txt": (bytes(range(1, 9)) * 99, "control characters: this is not text"),
    "pointer.txt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer.*git lfs pull"),
    "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer.*git lfs pull"),
    "pointer.jsonl.gz": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
    "page.txt": (b"\n <!DOCTYPE html>\n<html><body>Not found</body></html>", "content is an HTML page"),
    "page.jsonl.zst": (b"<HTML><body>Not found</body></html>", "content is an HTML page"),
    "packed.txt": (gzip.compress(b"A story."), r"content is gzip; let its name end in \.gz"),
    "letter.txt": (as_zip({"word/document.xml": b"<?xml"}), r"content is a zip archive \(as \.docx"),
    "empty.txt.gz": (b"", "damaged or cut short after 0 documents"),
    "empty.jsonl.zst": (b"", "damaged or cut short after 0 documents"),
    "cut.txt.gz": (gzip.compress(os.urandom(9000))[:5000], "damaged or cut short|not UTF-8|NUL"),
    "cut.jsonl.gz": (gzip.compress(as_jsonl(STORIES * 40))[:-20], "damaged or cut short after"),
    "cut.txt.zst": (zstandard.compress(as_text(STORIES))[:-9], "damaged or cut short after"),
    "cut.parquet": (as_parquet(STORIES)[:-50], "damaged or cut short after 0 documents"),
    "cut.json": (json.dumps([{"text": "a"}] * 9)[:-1].encode(), "damaged or cut short after 9"),
    "cut-header.tar": (MANY_MEMBERS[: 1024 * 10 + 99], "damaged or cut short after 10 documents.*header"),
    "cut-at-a-member.tar": (MANY_MEMBERS[: 1024 * 10], "damaged or cut short after 10 documents.*no end"),
    "column.parquet": (as_parquet(STORIES, "body"), "no column 'text'; there is id, body"),
    "list.parquet": (parquet([["a"], ["b"]]), "column 'text' is list<.*>, not text"),
    "latin1.parquet": (parquet([b"a", b"caf\xe9"]), "rows 0 to 1: not UTF-8"),
    "number.jsonl": (b'{"text": "a"}\n{"text": 3}\n', "line 2: field 'text' is 3, not text"),
    "column.jsonl": (b'{"text": "a"}\n\n{"body": "b"}\n', "line 3: no field 'text'; there is body"),
    "chat.jsonl": (b'{"text": "a"}\n[["a"]]\n', "record 2: no field 'text'; there is .*a"),
    "data.json": (b'{\n "data": [\n  {"text": "a"}]}', r"line 1: no field 'text'; there is data; .*jq -c '\.data\[\]'"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
    "broken-line.jsonl": (b'{"text": "a"}\n{"text": "b\n{"text": "c"}\n', "line 2: not JSON"),
    "csv.jsonl": (b"text,id\na,1\n", "line 1: not JSON"),
    "surrogate.jsonl": (b'{"text": "a\\ud800"}\n', "line 1: not Unicode text"),
    "digits.jsonl": (b'{"text": "a"}\n{"text": "b", "n": ' + b"9" * 5000 + b"}\n", "line 2: JSON that cannot be read"),
    "deep.jsonl": (b'{"text": "a", "n": ' + b"[" * 10**5 + b"]" * 10**5 + b"}\n", "line 1: JSON that cannot be read"),
    "table.xlsx": (b"PK", r"unknown type of file; allowed: \.txt"),
    "climbs.zip": (as_zip({"../evil.txt": b"a"}), r"\.\./evil\.txt: a path that climbs out"),
    "climbs.tar": (as_tar({"/etc/evil.txt": b"a"}), r"/etc/evil\.txt: a path that climbs out"),
    "page.parquet": (with_a_broken_page(as_parquet(STORIES * 9)), "damaged or cut short after 0 documents"),
    "encrypted.zip": (encrypted(as_zip({"a.txt": b"a"})), r"a\.txt is encrypted; unpack the archive"),
    "two.zip": (as_zip({"a.txt": b"a"}) + as_zip({"b.txt": b"b"}), "two archives joined into one"),
    "deep.zip": (as_zip({"b.zip": as_zip({"c.zip": as_zip({"a.txt": b"a"})})}), "an archive in an archive in an"),
    "link.zip": (as_zip({"a.txt": b"a", "b.txt": b"a.txt"}, links=("b.txt",)), r"b\.txt is a link"),
    "inner.zip": (as_zip({"a/b.jsonl": b"nonsense"}), r"a/b\.jsonl: line 1: not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_with_its_place(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises(UserError, match=message) as refused:
        read(data, name)
    assert str(refused.value).startswith(f"{name}: ")


def test_two_columns_of_one_name_are_refused() -> None:
    out = io.BytesIO()
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), out)
    with pytest.raises(UserError, match=r"a\.parquet: 2 columns are called 'text'"):
        read(out.getvalue(), "a.parquet")


@pytest.mark.parametrize("packed", [bytes, gzip.compress, zstandard.compress], ids=["", "gz", "zst"])
def test_a_tar_that_is_cut_or_flipped_anywhere_is_never_a_short_read(packed: Any) -> None:
    draw = random.Random(0)
    name = "a.tar" + {gzip.compress: ".gz", zstandard.compress: ".zst"}.get(packed, "")
    for _ in range(60):
        at = draw.randrange(len(MANY_MEMBERS) - 10240)
        flipped = bytearray(MANY_MEMBERS)
        flipped[at] ^= 1 << draw.randrange(8)
        for data in (packed(MANY_MEMBERS[:at]), packed(bytes(flipped))):
            try:
                assert len(read(data, name)) == len(STORIES)
            except UserError:
                continue


def test_a_text_beyond_the_bound_is_named_whatever_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "MAX_DOCUMENT_CHARS", 2_000_000)
    documents = ["A story.", "long " * 500_000, "Another."]
    files = {
        "a.json": (json.dumps(as_records(documents)).encode(), "record 2: longer than"),
        "a.jsonl": (
            as_jsonl(documents),
            "line 2: longer than 2,000,000 characters, or it has no end",
        ),
        "a.parquet": (as_parquet(documents), "row 1: text longer than 2,000,000 characters"),
        "a.txt": ("\n".join(documents).encode(), "the document that begins 'long long .*longer than 2,000,000"),
    }
    for name, (data, message) in files.items():
        with pytest.raises(UserError, match=f"{name}: {message}"):
            read(data, name)


def test_one_huge_line_is_refused_without_holding_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(splitting, "MAX_DOCUMENT_CHARS", 3_000_000)
    path = tmp_path / "huge.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as out:
        for _ in range(200):
            out.write(b"word " * 200_000)
    for how in ("auto", "lines", "whole"):
        with path.open("rb") as stream, pytest.raises(UserError, match=r"begins 'word word .*longer than 3,000,000"):
            list(Reader(path.name, How("text", how, "-")).documents(stream))


@pytest.mark.parametrize("content", ["[", '[{"text": "a"}', ""])
def test_white_space_in_json_takes_neither_time_nor_memory(content: str) -> None:
    blank, begun = b"\n" * 2**20, time.monotonic()

    class Blank(io.RawIOBase):
        left: ClassVar = [content.encode(), *[blank] * 100, b"]" if content else b'{"text": "a"}']

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            block = self.left.pop(0) if self.left else b""
            buffer[: len(block)] = block
            return len(block)

    documents = list(Reader("a.json", How("text", "auto", "-")).documents(io.BufferedReader(Blank(), 2**20)))
    assert documents == ([] if content == "[" else ["a"])
    assert time.monotonic() - begun < 10


def test_the_time_of_a_json_array_grows_with_its_length_alone() -> None:
    """A record that goes over many chunks is not parsed anew with each."""
    documents = ["long " * 2_000_000, "short"]
    begun = time.monotonic()
    assert read(b" \n" * 2**20 + json.dumps(as_records(documents)).encode(), "a.json") == documents
    assert time.monotonic() - begun < 10


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


def test_a_name_that_is_not_utf8_is_shown_escaped() -> None:
    assert shown(os.fsdecode(b"caf\xe9.txt")) == "caf\\xe9.txt"
    with pytest.raises(UserError, match=r"^caf\\xe9\.doc: unknown type") as refused:
        read(b"", os.fsdecode(b"caf\xe9.doc"))
    str(refused.value).encode()


def test_a_full_disk_is_not_called_damage() -> None:
    with pytest.raises(OSError, match="No space left"), in_words("a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=r"^a\.txt: it cannot be read \(Is a directory\)$"), in_words("a.txt"):
        raise OSError(errno.EISDIR, "Is a directory")
