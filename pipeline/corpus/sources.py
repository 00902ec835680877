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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import console
from pipeline.corpus import fetching
from pipeline.corpus.reading import ALLOWED, How, Reader, kind_of
from pipeline.corpus.shards import Shards
from pipeline.corpus.storyteller import stories
from pipeline.errors import UserError
from pipeline.files import written_whole
from pipeline.params import Bundled, Download, HuggingFace, Local, Url, Wandb

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
    file: File | None = None


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
            manifest |= {"origin": "pipeline/corpus/storyteller.py", "seed": params.seed, "licence": "as this project"}
            written = _write(_sampled(documents, params), folder, params.documents)
        else:
            files = list(_files(params, into, manifest, artifact))
            written = _write(_chosen(files, params, guesses), folder, params.max_documents)
            manifest["files"] = [{"name": file.name, **file.entry} for file in files if "documents" in file.entry]
        if not written["documents"]:
            raise UserError(f"download: no document in {manifest['origin']}")
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
        hub = fetching.Hub(params, sampled=bool(params.max_documents or params.max_bytes))
        manifest |= {"origin": params.repo, "revision": hub.commit, "licence": params.licence}
        for split in sorted(params.splits, reverse=True):  # val before train
            for found in hub.files(params.splits[split]):
                yield File(found.name, str(params.repo), split, found.open, {"origin": found.origin, **found.checked})
    else:
        manifest |= {"origin": ", ".join(params.urls), "licence": params.licence}
        for url, path in fetching.urls(params, into.parent):
            name = PurePosixPath(path.name).name
            yield File(name, _source(name, "download"), None, _opener(path), _checked(path, url))


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
    found = [file for file in found if kind_of(file.name)[0] and not file.name.startswith(".")]
    if not found:
        raise UserError(f"{path}: no file of a known type matches download.pattern = {pattern!r}; {ALLOWED}")
    for file in found:
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        yield File(name, _source(name, root.name), None, _opener(file), _checked(file, file.as_posix()))


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


def _chosen(files: list[File], params: Local | HuggingFace | Url | Wandb, guesses: Counter[str]) -> Iterator[_Document]:
    """The documents of the files, within the bounds. Val, which comes first, takes a tenth of a bound at most."""
    val = [file for file in files if file.split == "val"]
    rest = [file for file in files if file.split != "val"]
    bounds = (params.max_documents, params.max_bytes)
    share = (_tenth(bounds[0]), _tenth(bounds[1])) if val and rest else bounds
    used = [0, 0]
    for group, bound in ((val, share), (rest, bounds)):
        for document in _sampled(_read(group, params, guesses), params, bound, used):
            assert document.file is not None
            document.file.entry["documents"] += 1
            document.file.entry["text_bytes"] += len(document.text.encode())
            yield document


def _tenth(bound: int | None) -> int | None:
    return max(1, bound // 10) if bound else None


def _read(files: list[File], params: Local | HuggingFace | Url | Wandb, guesses: Counter[str]) -> Iterator[_Document]:
    for file in files:
        file.entry |= {"split": file.split, "documents": 0, "text_bytes": 0}
        with file.open() as stream:
            if isinstance(params, Wandb):
                yield from _labelled(file, stream)
                continue
            reader = Reader(file.name, How(params.text_column, params.split, params.separator))
            for text in reader.documents(stream):
                yield _Document(text, file.source, file.split, file=file)
        guesses.update(reader.guesses)


def _labelled(file: File, stream: IO[bytes]) -> Iterator[_Document]:
    """Documents that this pipeline wrote before: they bring their source, and their split in a raw artifact."""
    parquet = pq.ParquetFile(stream)
    names = parquet.schema_arrow.names
    if not {"text", "source"} <= set(names):
        raise UserError(f"{file.name}: not a corpus of this pipeline; its columns are {', '.join(names)}")
    for batch in parquet.iter_batches(1024, columns=[name for name in ("text", "source", "split") if name in names]):
        for record in batch.to_pylist():
            yield _Document(record["text"], record["source"], record.get("split") or file.split, file=file)


def _sampled(
    documents: Iterator[_Document],
    params: Download,
    bounds: tuple[int | None, int | None] | None = None,
    used: list[int] | None = None,
) -> Iterator[_Document]:
    """What the seeded sample takes, until a bound (documents, bytes) would be passed; counts in `used`."""
    max_documents, max_bytes = bounds or (params.max_documents, params.max_bytes)
    used = [0, 0] if used is None else used
    key, limit = params.seed.to_bytes(16, "little", signed=True), int(params.sample_fraction * 2**64)
    for document in documents:
        encoded = document.text.encode()
        if params.sample_fraction < 1:
            drawn = int.from_bytes(hashlib.blake2b(encoded, digest_size=8, key=key).digest(), "little")
            if drawn >= limit:
                continue
        if (max_bytes and used[1] + len(encoded) > max_bytes) or (max_documents and used[0] >= max_documents):
            return
        used[0], used[1] = used[0] + 1, used[1] + len(encoded)
        yield document
        if max_documents and used[0] >= max_documents:
            return


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
