"""Where documents come from: the bundled storyteller, own files, the Hugging Face Hub, addresses, W&B artifacts.

report = download(params.download, Path("data/raw"))

Every source gives the same: Parquet shards (row, text, source, split) and manifest.json, which says where each byte
came from. The same documents give the same bytes: nothing that is written depends on the time or the format read.
"""

import glob
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa

from pipeline import console
from pipeline.documents import columns
from pipeline.documents.reading import ALLOWED, How, Reader, kind_of, not_data
from pipeline.documents.shards import Shards
from pipeline.download import fetching
from pipeline.download.hub import Hub
from pipeline.errors import UserError
from pipeline.files import written_whole
from pipeline.params import Bundled, Download, HuggingFace, Local, Url, Wandb
from pipeline.storyteller.stories import stories

SCHEMA = pa.schema([("row", pa.int64()), ("text", pa.string()), ("source", pa.string()), ("split", pa.string())])
_BATCH_BYTES = 2**20


@dataclass
class File:
    """One file of a source: how to open it, what the manifest says of it, what its documents are labelled with."""

    name: str
    source: str
    split: str | None
    open: Callable[[], AbstractContextManager[IO[bytes]]]
    entry: dict[str, Any]


@dataclass
class _Document:
    text: str
    source: str
    split: str | None
    bits: float = 0.0  # of chance, where the source knows it


def download(params: Download, into: Path, artifact: tuple[Path, dict[str, Any]] | None = None) -> dict[str, Any]:
    """Fetch a corpus to `into` and return the report.

    artifact: for source `wandb`, the folder that holds the artifact's files and what the manifest says of it.
    Raises UserError for a source that is not there, is damaged or holds no document.
    """
    manifest: dict[str, Any] = {"source": params.source}
    guesses: Counter[str] = Counter()
    with written_whole(into) as folder:
        if isinstance(params, Bundled):
            documents = (_Document(s.text, "storyteller", None, s.bits) for s in stories(params.documents, params.seed))
            manifest |= {"origin": "pipeline/storyteller/stories.py", "seed": params.seed, "licence": "as this project"}
            written = _write(_bounded([(None, documents)], params, both=False), folder, params.documents)
        else:
            files = list(_files(params, into, manifest, artifact))
            opened = ((file, _read(file, params, guesses)) for file in files)
            both = any(file.split != "val" for file in files)
            written = _write(_bounded(opened, params, both), folder, params.max_documents)
            manifest["files"] = [{"name": file.name, **file.entry} for file in files if "documents" in file.entry]
        if not written["documents"]:
            drawn = f" (download.sample_fraction = {params.sample_fraction:g})" if params.sample_fraction < 1 else ""
            raise UserError(f"download: no document in {manifest['origin']}{drawn}")
        manifest |= written
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (folder / "manifest.json").write_text(text, encoding="utf-8")
    if isinstance(params, Url):
        fetching.forget(params.urls, into.parent)
    report = {key: value for key, value in manifest.items() if key not in ("files", "shards")}
    return report | {"files": len(manifest.get("files", [])), "guessed_split": dict(guesses)}


def _files(
    params: Local | HuggingFace | Url | Wandb, into: Path, manifest: dict[str, Any], artifact: Any
) -> Iterator[File]:
    """The files of a source, val before train; fills in what the manifest says of the whole."""
    if isinstance(params, Local):
        manifest |= {"origin": params.path}
        yield from _local(Path(params.path), params.pattern)
    elif isinstance(params, Wandb):
        if artifact is None:
            raise ValueError("the files of a wandb artifact must be handed in")
        folder, origin = artifact
        manifest |= {"origin": params.artifact, **origin}
        yield from _artifact(folder)
    elif isinstance(params, HuggingFace):
        hub = Hub(params)
        manifest |= {"origin": params.repo, "revision": hub.commit, "licence": hub.licence}
        for split in sorted(params.splits, reverse=True):  # val before train
            for found in hub.files(params.splits[split]):
                yield File(found.name, str(params.repo), split, found.open, found.entry)
    else:
        origins = [fetching.without_secrets(url) for url in params.urls]
        manifest |= {"origin": ", ".join(origins), "licence": params.licence}
        for fetched in fetching.urls(params, into.parent):
            entry = _checked(fetched.path, fetched.origin) | {"revision": fetched.revision}
            name = fetched.path.name
            yield File(name, _source(name, "download"), None, _opener(fetched.path), entry)


def _local(path: Path, pattern: str) -> Iterator[File]:
    """The files of a path, which is a file, a folder or itself a glob."""
    if path.is_file():
        if not kind_of(path.name)[0]:
            raise UserError(f"{path}: unknown type of file; {ALLOWED}")
        found, root = [path], path.parent
    elif path.is_dir():
        found, root = sorted(file for file in path.glob(pattern) if file.is_file()), path
    else:
        found, root = sorted(Path(file) for file in glob.glob(str(path), recursive=True)), path.parent
        if not found:
            raise UserError(f"download.path = {str(path)!r}: no such file or folder")
    if not path.is_file():
        left_out = {file.name: why for file in found if (why := not_data(file.name))}
        found = [file for file in found if file.name not in left_out]
        for why, names in _grouped(left_out).items():
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            console.warn(f"{path}: left out: {', '.join(names[:5])}{more}: {why}")
    if not found:
        raise UserError(f"{path}: no file of a known type matches download.pattern = {pattern!r}; {ALLOWED}")
    for file in found:
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        yield File(name, _source(name, root.name), None, _opener(file), _checked(file, file.as_posix()))


def _grouped(reasons: dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, why in reasons.items():
        groups.setdefault(why, []).append(name)
    return groups


def _artifact(folder: Path) -> Iterator[File]:
    """Parquet of a raw or a clean artifact; the folders val and train of a clean one are its splits."""
    found = sorted(folder.rglob("*.parquet"), key=lambda file: (file.parent.name != "val", file))
    if not found:
        raise UserError(f"download.artifact: no Parquet file in it ({', '.join(f.name for f in folder.rglob('*'))})")
    for file in found:
        name, split = file.relative_to(folder).as_posix(), file.parent.name
        split_given = split if split in ("train", "val") else None
        yield File(name, "", split_given, _opener(file), _checked(file, name))


def _source(name: str, otherwise: str) -> str:
    """What the documents of a file are counted under: its name without type and shard number, in every format."""
    path = PurePosixPath(name)
    stem = path.name
    while kind_of(stem)[0] or PurePosixPath(stem).suffix.lower() in (".gz", ".zst", ".tgz"):
        stem = PurePosixPath(stem).stem
    stem = re.sub(r"([-_.]?\d+)?([-_.]of[-_.]\d+)?$", "", stem)
    return (
        (path.parent / stem).as_posix() if stem else (path.parent.as_posix().removeprefix(".") or otherwise or "local")
    )


def _opener(path: Path) -> Callable[[], AbstractContextManager[IO[bytes]]]:
    return lambda: path.open("rb")


def _checked(path: Path, origin: str) -> dict[str, Any]:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"origin": origin, "bytes": path.stat().st_size, "sha256": digest}


# --- which documents are kept -----------------------------------------------------------------------------------------


def _read(file: File, params: Local | HuggingFace | Url | Wandb, guesses: Counter[str]) -> Iterator[_Document]:
    file.entry |= {"split": file.split, "documents": 0, "text_bytes": 0}
    with file.open() as stream:
        if isinstance(params, Wandb):
            yield from _labelled(file, stream)
            return
        reader = Reader(file.name, How(params.text_column, params.split, params.separator), guesses)
        for text in reader.documents(stream):
            yield _Document(text, file.source, file.split)


def _labelled(file: File, stream: IO[bytes]) -> Iterator[_Document]:
    """Documents that this pipeline wrote before: they bring their source, and their split in a raw artifact."""
    try:
        names = columns.names(stream)
        if not {"text", "source"} <= set(names):
            raise UserError(f"not a corpus of this pipeline; its columns are {', '.join(names)}")
        wanted = [name for name in ("text", "source", "split") if name in names]
        for row, record in columns.records(stream, wanted):
            text, source = record["text"], record["source"]
            if text is None or source is None:
                raise UserError(f"row {row} has no {'text' if text is None else 'source'}")
            yield _Document(text, source, record.get("split") or file.split)
    except UserError as error:
        raise UserError(f"{file.name}: {error}") from None


def _sampled(documents: Iterable[_Document], params: Download) -> Iterator[tuple[_Document, int]]:
    """The documents that the seeded sample draws, with their bytes."""
    key, limit = params.seed.to_bytes(16, "little", signed=True), int(params.sample_fraction * 2**64)
    for document in documents:
        encoded = document.text.encode()
        if params.sample_fraction < 1:
            drawn = int.from_bytes(hashlib.blake2b(encoded, digest_size=8, key=key).digest(), "little")
            if drawn >= limit:
                continue
        yield document, len(encoded)


def _bounded(
    opened: Iterable[tuple[File | None, Iterable[_Document]]], params: Download, both: bool
) -> Iterator[_Document]:
    """The documents until the next one would pass a bound (max_documents, max_bytes), file by file.

    both: there are two splits, val first. Val then takes a tenth of a bound at most, but a document at least.
    Raises UserError where a bound leaves no room for the first document of a split.
    """
    whole = _Room(params.max_documents, params.max_bytes)
    val = _Room(_tenth(params.max_documents), _tenth(params.max_bytes))
    val_is_full = False
    for file, documents in opened:
        if val_is_full and file is not None and file.split == "val":
            continue
        for document, size in _sampled(documents, params):
            is_val = both and document.split == "val"
            if is_val:
                val_is_full = val_is_full or (val.documents > 0 and not val.takes(size))
                if val_is_full and file is not None and file.split == "val":
                    break
                if val_is_full:
                    continue
            if not whole.takes(size):
                if whole.documents == val.documents:
                    raise UserError(_no_room(whole, val, size, file.name if file else "the stories"))
                return
            whole.add(size)
            if is_val:
                val.add(size)
            if file is not None:
                file.entry["documents"] += 1
                file.entry["text_bytes"] += size
            yield document
            if whole.documents == whole.max_documents and not is_val:
                return


@dataclass
class _Room:
    """What was taken within a bound."""

    max_documents: int | None
    max_bytes: int | None
    documents: int = 0
    bytes: int = 0

    def takes(self, size: int) -> bool:
        fits = self.max_bytes is None or self.bytes + size <= self.max_bytes
        return fits and (self.max_documents is None or self.documents < self.max_documents)

    def add(self, size: int) -> None:
        self.documents, self.bytes = self.documents + 1, self.bytes + size


def _tenth(bound: int | None) -> int | None:
    return max(1, bound // 10) if bound else None


def _no_room(whole: _Room, val: _Room, size: int, name: str) -> str:
    if whole.documents == whole.max_documents:
        return f"download.max_documents = {whole.max_documents}: val takes it; allowed: at least 2, one to train on"
    beside = f" beside {val.bytes:,} of val" if val.documents else ""
    return (
        f"download.max_bytes = {whole.max_bytes:,}: the first document of {name} has {size:,} bytes{beside}; raise it"
    )


def _write(documents: Iterator[_Document], folder: Path, total: int | None) -> dict[str, Any]:
    """Write shards; return the counts."""
    splits: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    waiting: list[_Document] = []
    bits, waiting_bytes, row = 0.0, 0, 0
    with Shards(folder, SCHEMA) as shards, console.progress("download", total, "documents") as advance:

        def flush() -> None:
            columns = {
                "row": pa.array(range(row, row + len(waiting)), pa.int64()),
                "text": pa.array([document.text for document in waiting], pa.string()),
                "source": pa.array([document.source for document in waiting], pa.string()),
                "split": pa.array([document.split for document in waiting], pa.string()),
            }
            shards.write(pa.table(columns))
            advance(len(waiting))

        for document in documents:
            waiting.append(document)
            waiting_bytes += len(document.text)
            bits += document.bits
            splits[document.split or "none"] += 1
            sources[document.source] += 1
            if waiting_bytes >= _BATCH_BYTES:
                flush()
                row, waiting_bytes = row + len(waiting), 0
                waiting.clear()
        flush()
    report = {"documents": shards.documents, "bytes": shards.bytes, "splits": dict(splits), "sources": dict(sources)}
    if bits:
        report["entropy_bits_per_byte"] = bits / max(1, shards.bytes)
    digests = {path.name: _checked(path, path.name)["sha256"] for path in sorted(folder.glob("part-*.parquet"))}
    return report | {"shards": [{**file, "sha256": digests[file["name"]]} for file in shards.files]}
