"""From raw shards to clean train and val shards, every document and byte counted.

    report = clean(params.clean, Path("data/raw"), Path("data/clean"), Path("reports/plots"))

Three passes: Daft judges documents one by one (on this machine's cores, or on a Ray cluster with the same plan);
duplicates are found among the hashes of all; what stays is written in the order of the raw documents. The bytes
written depend on the documents and the params alone, not on the runner, its threads or the cuts between shards.
"""

import json
import os
import socket
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("DAFT_PROGRESS_BAR", "0")  # ours is shown; and no report to anyone of what was run
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
os.environ.setdefault("DO_NOT_TRACK", "true")

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from daft import DataType, Series, col
from daft.exceptions import DaftCoreException

from pipeline import console
from pipeline.clean import decontamination, duplicates, splits
from pipeline.clean.rules import JUDGED, active, judge
from pipeline.clean.statistics import Statistics, in_words
from pipeline.documents.shards import Shards, byte_lengths, tables
from pipeline.errors import UserError
from pipeline.files import scratch, written_whole
from pipeline.hashing import file_sha256
from pipeline.params import Clean

SCHEMA = pa.schema([("text", pa.string()), ("source", pa.string()), ("id", pa.string())])
_KEPT = pa.schema([("text", pa.string()), ("source", pa.string()), ("key", pa.uint64())])
_RAW = {"row", "text", "source", "split"}


def clean(params: Clean, raw: Path, into: Path, plots: Path, runner: str | None = None) -> dict[str, Any]:
    """Clean the documents of `raw` into `into`/train and `into`/val, draw the plots and return the report.

    runner: native | ray; None: ray when RAY_ADDRESS is set. Raises UserError where nothing could be trained on.
    """
    decontamination.check(params)
    shards, digests = _raw_shards(raw)
    address = os.environ.get("RAY_ADDRESS")
    use_runner(runner or ("ray" if address else "native"), address)
    statistics = Statistics(params)
    with scratch(into.with_name(".clean-work")) as work, written_whole(into) as folder:
        documents, given = _judge_all(params, shards, digests, work, statistics)
        _drop_repeats(params, documents)
        dropped = in_words(statistics.dropped(documents.reason))
        losses = f"{raw} has {statistics.documents_in:,} (dropped: {dropped or 'none'})"
        moved = splits.fill(documents, given, losses)
        _write(params, work, folder, documents, statistics)
    statistics.draw(plots)
    statistics.warn()
    return statistics.report() | {"split": "as given" if given else "by hash", "moved_to_fill_split": moved}


@cache  # it can be chosen once in a process
def use_runner(runner: str, address: str | None) -> None:
    """Let Daft run on this machine or on the Ray cluster at an address."""
    if runner == "native":
        daft.set_runner_native()
        return
    if find_spec("ray") is None:
        raise UserError("--runner ray: Ray is not installed; `uv sync --extra ray`")
    try:
        if address and ":" in address:  # asked first, since Ray itself waits for minutes and then ends the process
            place = urlsplit(address if "://" in address else f"//{address}")
            socket.create_connection((place.hostname or "", place.port or 0), timeout=5).close()
        daft.set_runner_ray(address, noop_if_initialized=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"RAY_ADDRESS = {address!r}: no Ray cluster answers ({error}); start one with `ray start --head`, "
            "or unset it to clean on this machine"
        ) from None


# --- first pass: each document by itself ------------------------------------------------------------------------------


def judged(params: Clean, shards: list[Path]) -> daft.DataFrame:
    """The plan of the first pass: raw columns and what `judge` and MinHash say of each document."""

    @daft.func.batch(return_dtype=DataType.from_arrow_type(JUDGED))
    def judge_batch(text: Series) -> pa.Array:
        texts = text.to_arrow()
        return judge(texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts, params)

    raw = [col("row"), col("source"), col("split")]
    frame = daft.read_parquet([str(path.resolve()) for path in shards])
    frame = frame.select(*raw, judge_batch(col("text")).alias("judged"))
    frame = frame.select(*raw, *(col("judged").get(field.name).alias(field.name) for field in JUDGED))
    if params.near_duplicates.enabled:
        frame = frame.with_column("signature", duplicates.signature(col("text"), params.near_duplicates))
    return frame


def _batches(params: Clean, shards: list[Path], digests: dict[str, str]) -> Iterator[pa.RecordBatch]:
    """What the plan gives. One machine takes shard after shard, since its engine would read all of them at once."""

    def verify(path: Path) -> None:
        if digests and file_sha256(path) != digests[path.name]:
            raise UserError(f"{path} has changed since download wrote it (SHA-256); run the stage download again")

    on_ray = daft.get_or_create_runner().name == "ray"
    for some in [shards] if on_ray else [[path] for path in shards]:
        with ThreadPoolExecutor() as pool:
            list(pool.map(verify, some))
        batches = judged(params, some).to_arrow_iter()
        try:
            for batch in batches:  # noqa: UP028 (`yield from` would close the engine's iterator)
                yield batch
        except DaftCoreException as error:
            if "CorruptFile" not in str(error):
                raise
            raise UserError(f"{error}; run the stage download again") from None
        finally:
            if not on_ray:  # after an error elsewhere: a process that ends while its engine is at work aborts
                deque(batches, maxlen=0)


def in_order(batches: Iterable[pa.RecordBatch]) -> Generator[pa.RecordBatch]:
    """The batches by their rows, 0, 1, 2, …: an engine may hand them out as they are ready."""
    waiting: dict[int, pa.RecordBatch] = {}
    due = 0
    for batch in batches:
        rows = batch.column("row").to_numpy()
        cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1), len(rows)]
        waiting |= {int(rows[a]): batch.slice(a, b - a) for a, b in pairwise(cuts) if a < b}
        while due in waiting:
            ready = waiting.pop(due)
            due += len(ready)
            yield ready
    if waiting:
        raise RuntimeError(f"row {due} did not come back from the first pass")


def _judge_all(
    params: Clean, shards: list[Path], digests: dict[str, str], work: Path, statistics: Statistics
) -> tuple[duplicates.Documents, bool]:
    """Run the first pass; what is not dropped goes to `work`. Also returns whether the source says what is val.

    Where it says so of some documents, those that it says nothing of are still split by hash.
    """
    keys, sizes, is_val, given = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], [np.zeros(0, bool)], False
    limit = np.uint64(int(params.val_fraction * 2**64))
    near = duplicates.NearDuplicates(params.near_duplicates, work) if params.near_duplicates.enabled else None
    total = sum(pq.read_metadata(path).num_rows for path in shards)
    with (
        Shards(work / "kept", _KEPT, "lz4") as out,
        console.progress("clean", total, "documents") as advance,
        closing(in_order(_batches(params, shards, digests))) as batches,
    ):
        for batch in batches:
            statistics.judged(batch)
            advance(len(batch))
            given |= pc.any(pc.equal(batch.column("split"), "val")).as_py() or False
            batch = batch.filter(pc.equal(batch.column("reason"), 0))
            out.write(pa.Table.from_batches([batch]).select(_KEPT.names))
            keys.append(batch.column("key").to_numpy())
            sizes.append(byte_lengths(batch.column("text")))
            said = pc.equal(batch.column("split"), "val")
            is_val.append(pc.coalesce(said, pa.array(keys[-1] < limit)).to_numpy(zero_copy_only=False))
            if near is not None:
                near.add(batch.column("signature").flatten().to_numpy())
    key, size = np.concatenate(keys), np.concatenate(sizes)
    return duplicates.Documents(key, size, np.concatenate(is_val), np.zeros(len(key), np.uint8), near), given


# --- second pass: hashes of all documents -----------------------------------------------------------------------------


def _drop_repeats(params: Clean, documents: duplicates.Documents) -> None:
    """Of documents that repeat each other a val one stays, else the first."""
    order = np.argsort(~documents.is_val, kind="stable")
    for number, rule in active(params):
        if rule.repeats:
            documents.reason[rule.repeats(documents, order[documents.reason[order] == 0])] = number


# --- third pass: write ------------------------------------------------------------------------------------------------


def _write(params: Clean, work: Path, folder: Path, documents: duplicates.Documents, statistics: Statistics) -> None:
    """Write what stays to train and val; what overlaps with benchmarks or val is dropped from train here."""
    in_val = documents.is_val & (documents.reason == 0)
    rules = [(number, rule.blocked) for number, rule in active(params) if rule.blocked]
    blocked = [(number, ngrams(params, _val_texts(work / "kept", in_val))) for number, ngrams in rules]
    row = 0
    with (
        Shards(folder / "train", SCHEMA) as train,
        Shards(folder / "val", SCHEMA) as val,
        console.progress("clean: writing", len(in_val), "documents") as advance,
    ):
        for table in tables(work / "kept"):
            advance(len(table))
            rows = slice(row, row + len(table))
            row += len(table)
            reason, is_val = documents.reason[rows], documents.is_val[rows]
            for number, ngrams in blocked:
                candidates = np.flatnonzero((reason == 0) & ~is_val)
                texts = table.column("text").take(pa.array(candidates)).combine_chunks()
                reason[candidates[decontamination.overlaps(texts, params.decontaminate_ngram, ngrams)]] = number
            table = table.append_column("id", pa.array([f"{key:016x}" for key in documents.key[rows].tolist()]))
            statistics.written(table, reason, is_val)
            train.write(table.filter(pa.array((reason == 0) & ~is_val)))
            val.write(table.filter(pa.array((reason == 0) & is_val)))
    if not train.documents:
        raise UserError("every training document overlaps with val or a benchmark (clean.decontaminate*)")


def _val_texts(folder: Path, wanted: np.ndarray) -> Iterator[pa.Array]:
    row = 0
    for table in tables(folder):
        some = table.column("text").filter(pa.array(wanted[row : row + len(table)]))
        row += len(table)
        yield some.combine_chunks()


# --- the raw shards ---------------------------------------------------------------------------------------------------


def _raw_shards(raw: Path) -> tuple[list[Path], dict[str, str]]:
    """The shards, and the SHA-256 that download gave each, by name; none where the folder has no manifest."""
    shards = sorted(raw.glob("part-*.parquet"))
    if not shards:
        raise UserError(f"no part-*.parquet in {raw}; run the stage download first")
    for path in shards:
        with _said_if_damaged(path):
            names = set(pq.read_schema(path).names)
        if not names >= _RAW:
            raise UserError(f"{path} lacks the column {', '.join(sorted(_RAW - names))}; it has {', '.join(names)}")
    manifest = raw / "manifest.json"
    if not manifest.exists():
        console.warn(f"{manifest} is not there: the shards are not verified")
        return shards, {}
    with _said_if_damaged(manifest):
        digests = {entry["name"]: entry["sha256"] for entry in json.loads(manifest.read_bytes())["shards"]}
    if odd := sorted({path.name for path in shards} ^ set(digests)):
        where = "in manifest.json or in the folder, but not in both"
        raise UserError(f"{raw}: {', '.join(odd[:5])} {where}; run the stage download again")
    return shards, digests


@contextmanager
def _said_if_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, where pyarrow's have no number
            raise
        raise UserError(f"{path} is damaged ({error}); run the stage download again") from None
