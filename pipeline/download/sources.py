"""Stage download's work: the documents of the source that the parameters name, as Parquet shards with a manifest.

report = download(params.download, Path("data/raw"))

Every source gives the same: Parquet shards (row, text, source, split) and manifest.json, which says where each byte
came from. The same documents give the same bytes: nothing that is written depends on the time or the format read.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from pipeline import console
from pipeline.documents.shards import Shards
from pipeline.download.bundled import BundledStories
from pipeline.download.huggingface import HubDataset
from pipeline.download.local import LocalFiles
from pipeline.download.source import Document, File, Source, sha256
from pipeline.download.url import Addresses
from pipeline.download.wandb import Artifact
from pipeline.errors import UserError
from pipeline.files import written_whole
from pipeline.params import Download
from pipeline.params.download import Bounded

SOURCES: dict[str, type[Source]] = {
    "bundled": BundledStories,
    "local": LocalFiles,
    "huggingface": HubDataset,
    "url": Addresses,
    "wandb": Artifact,
}
SCHEMA = pa.schema([("row", pa.int64()), ("text", pa.string()), ("source", pa.string()), ("split", pa.string())])
_BATCH_BYTES = 2**20
_LISTED = 20  # sources in the report


def download(params: Download, into: Path) -> dict[str, Any]:
    """Fetch a corpus to `into` and return the report.

    Raises UserError for a source that is not there, is damaged or holds no document.
    """
    with written_whole(into) as folder, SOURCES[params.source](params, into.parent) as source:
        files = source.files()
        written = _write(bounded(files, params), folder, params.max_documents)
        if not written["documents"]:
            drawn = f" (download.sample_fraction = {params.sample_fraction:g})" if params.sample_fraction < 1 else ""
            raise UserError(f"download: no document in {source.manifest['origin']}{drawn}")
        manifest = {"source": params.source, **source.manifest, **written}
        manifest["files"] = [{"name": file.name, **file.entry} for file in files if "documents" in file.entry]
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        (folder / "manifest.json").write_text(text, encoding="utf-8")
    report = {key: value for key, value in manifest.items() if key not in ("files", "shards")}
    return report | {
        "sources": _largest(written["sources"]),
        "files": len(manifest["files"]),
        "left_out": dict(Counter(source.left_out.values())),
        "guessed_split": dict(source.guesses),
        "dropped": dict(source.dropped),
        "description": source.description,
        "card": f"Data: {source.card}; {written['documents']:,} documents, {console.size(written['bytes'])}.",
        "dataset": source.dataset,
    }


def chosen_otherwise(params: Download, lock: Path = Path("dvc.lock")) -> str:
    """In words, what the last run took where that was another corpus; "" where it was the same, or there was none."""
    locked = yaml.safe_load(lock.read_text(encoding="utf-8")) if lock.is_file() else {}
    before = locked.get("stages", {}).get("download", {}).get("params", {}).get("params.yaml", {}).get("download", {})
    names = ("source", "path", "repo", "urls", "artifact")
    then, now = ({name: values[name] for name in names if values.get(name)} for values in (before, params.model_dump()))
    return ", ".join(f"{name} = {value}" for name, value in then.items()) if then not in ({}, now) else ""


def _largest(sources: dict[str, int]) -> dict[str, int]:
    """The sources with the most documents, the rest in one sum; manifest.json has all."""
    largest = dict(sorted(sources.items(), key=lambda item: -item[1])[:_LISTED])
    others = len(sources) - len(largest)
    return largest | ({f"{others:,} others": sum(sources.values()) - sum(largest.values())} if others else {})


def _sampled(documents: Iterable[Document], params: Bounded) -> Iterator[tuple[Document, int]]:
    """The documents that the seeded sample draws, with their bytes."""
    key, limit = params.seed.to_bytes(16, "little", signed=True), int(params.sample_fraction * 2**64)
    for document in documents:
        encoded = document.text.encode()
        if params.sample_fraction < 1:
            drawn = int.from_bytes(hashlib.blake2b(encoded, digest_size=8, key=key).digest(), "little")
            if drawn >= limit:
                continue
        yield document, len(encoded)


def bounded(files: list[File], params: Bounded) -> Iterator[Document]:
    """The documents until the next one would pass a bound (max_documents, max_bytes), file by file.

    Where there are two splits, val first, val takes a tenth of a bound at most, but a document at least.
    Raises UserError where a bound leaves no room for the first document of a split.
    """
    both = any(file.split != "val" for file in files)
    whole = _Room(params.max_documents, params.max_bytes)
    val = _Room(_tenth(params.max_documents), _tenth(params.max_bytes))
    for file in files:
        if file.split == "val" and val.full:
            continue
        file.entry |= {"split": file.split, "documents": 0, "text_bytes": 0}
        for document, size in _sampled(file.documents(), params):
            is_val = both and document.split == "val"
            val.full |= is_val and val.documents > 0 and not val.takes(size)
            if is_val and val.full:
                if file.split == "val":
                    break
                continue
            if not whole.takes(size):
                if whole.documents == val.documents:
                    raise UserError(_no_room(whole, val, size, file.name))
                return
            for room in (whole, val) if is_val else (whole,):
                room.documents, room.bytes = room.documents + 1, room.bytes + size
            file.entry["documents"] += 1
            file.entry["text_bytes"] += size
            yield document


@dataclass
class _Room:
    """What was taken within a bound."""

    max_documents: int | None
    max_bytes: int | None
    documents: int = 0
    bytes: int = 0
    full: bool = False

    def takes(self, size: int) -> bool:
        fits = self.max_bytes is None or self.bytes + size <= self.max_bytes
        return fits and (self.max_documents is None or self.documents < self.max_documents)


def _tenth(bound: int | None) -> int | None:
    return max(1, bound // 10) if bound else None


def _no_room(whole: _Room, val: _Room, size: int, name: str) -> str:
    if whole.documents == whole.max_documents:
        return f"download.max_documents = {whole.max_documents}: val takes it; allowed: at least 2, one to train on"
    beside = f" beside {val.bytes:,} of val" if val.documents else ""
    return (
        f"download.max_bytes = {whole.max_bytes:,}: the first document of {name} has {size:,} bytes{beside}; raise it"
    )


def _write(documents: Iterator[Document], folder: Path, total: int | None) -> dict[str, Any]:
    """Write shards; return the counts."""
    splits: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    waiting: list[Document] = []
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
    digests = {path.name: sha256(path) for path in sorted(folder.glob("part-*.parquet"))}
    return report | {"shards": [{**file, "sha256": digests[file["name"]]} for file in shards.files]}
