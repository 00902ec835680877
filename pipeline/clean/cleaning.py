"""From raw shards to clean train and val shards, with an account of every document and byte.

    report = clean(params.clean, Path("data/raw"), Path("data/clean"), Path("reports/plots"))

Three passes: Daft scrubs documents one by one (on this machine's cores, or on a Ray cluster with the same plan);
duplicates are found among the hashes of all; what stays is written in the order of the raw documents. The bytes
written depend on the documents and the params alone, not on the runner, its threads or the cuts between shards.
"""

import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
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

from pipeline import console
from pipeline.clean import decontamination, near_duplicates
from pipeline.clean.scrubbing import SCRUBBED, scrub
from pipeline.clean.statistics import Account
from pipeline.documents.shards import Shards, tables
from pipeline.errors import UserError
from pipeline.files import scratch, written_whole
from pipeline.params import Clean

SCHEMA = pa.schema([("text", pa.string()), ("source", pa.string()), ("id", pa.string())])
_SCRUBBED = pa.schema([("text", pa.string()), ("source", pa.string()), ("key", pa.uint64())])
_RAW = {"row", "text", "source", "split"}


def clean(params: Clean, raw: Path, into: Path, plots: Path, runner: str | None = None) -> dict[str, Any]:
    """Clean the documents of `raw` into `into`/train and `into`/val, draw the plots and return the report.

    runner: native | ray; None: ray when RAY_ADDRESS is set. Raises UserError where nothing could be trained on.
    """
    shards = _raw_shards(raw)
    use_runner(runner)
    account = Account(params)
    with scratch(into.with_name(".clean-work")) as work, written_whole(into) as folder:
        keys, is_val, signatures = _scrub_all(params, shards, work, account)
        dropped = _duplicates(params, keys, is_val, signatures)
        moved = _sides(keys, is_val, dropped == 0, not account.splits_given, _losses(raw, account, dropped))
        dropped = _write(params, work, folder, keys, is_val, dropped, account)
    account.draw(plots)
    return account.report() | {"split": "as given" if account.splits_given else "by hash", "moved_to_fill_split": moved}


def use_runner(runner: str | None) -> None:
    """Let Daft run on this machine or on Ray; it can be chosen once in a process."""
    if runner is None:
        runner = "ray" if os.environ.get("RAY_ADDRESS") else "native"
    _start(runner)


@cache
def _start(runner: str) -> None:
    if runner == "native":
        daft.set_runner_native()
        return
    if find_spec("ray") is None:
        raise UserError("--runner ray: Ray is not installed; `uv sync --extra ray`")
    address = os.environ.get("RAY_ADDRESS")
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


def scrubbed(params: Clean, shards: list[Path]) -> daft.DataFrame:
    """The plan of the first pass: raw columns and what `scrub` and MinHash say of each document."""

    @daft.func.batch(return_dtype=DataType.from_arrow_type(SCRUBBED))
    def scrub_batch(text: Series) -> pa.Array:
        texts = text.to_arrow()
        return scrub(texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts, params)

    frame = daft.read_parquet([str(path.resolve()) for path in shards])
    frame = frame.select(col("row"), col("source"), col("split"), scrub_batch(col("text")).alias("scrubbed"))
    frame = frame.select(
        col("row"), col("source"), col("split"), *(col("scrubbed").get(f.name).alias(f.name) for f in SCRUBBED)
    )
    if params.near_duplicates.enabled:
        frame = frame.with_column("signature", near_duplicates.signature(col("text"), params.near_duplicates))
    return frame


def _batches(params: Clean, shards: list[Path]) -> Iterator[pa.RecordBatch]:
    """What the plan gives. One machine takes shard after shard, since its engine would read all of them at once."""
    on_ray = daft.get_or_create_runner().name == "ray"
    for some in [shards] if on_ray else [[path] for path in shards]:
        yield from scrubbed(params, some).to_arrow_iter()


def in_order(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
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


def _scrub_all(
    params: Clean, shards: list[Path], work: Path, account: Account
) -> tuple[np.ndarray, np.ndarray, near_duplicates.NearDuplicates | None]:
    """Run the first pass; what is not dropped goes to `work`. Returns its keys and whether it is val."""
    keys, is_val = [np.zeros(0, np.uint64)], [np.zeros(0, bool)]
    splits = [_has_val(path) for path in shards]
    account.splits_given = any(splits)
    limit = np.uint64(int(params.val_fraction * 2**64))
    near = near_duplicates.NearDuplicates(params.near_duplicates, work) if params.near_duplicates.enabled else None
    width = params.near_duplicates.bands * params.near_duplicates.rows
    total = sum(pq.read_metadata(path).num_rows for path in shards)
    with Shards(work / "scrubbed", _SCRUBBED, "lz4") as out, console.progress("clean", total, "documents") as advance:
        for batch in in_order(_batches(params, shards)):
            account.scrubbed(batch)
            advance(len(batch))
            batch = batch.filter(pc.equal(batch.column("reason"), 0))
            out.write(pa.Table.from_batches([batch]).select(_SCRUBBED.names))
            keys.append(batch.column("key").to_numpy())
            side = keys[-1] < limit
            if account.splits_given:
                given = batch.column("split")
                side = np.where(given.is_null(), side, pc.equal(given, "val").fill_null(False))
            is_val.append(side.astype(bool))
            if near is not None:
                near.add(batch.column("signature").flatten().to_numpy().reshape(len(batch), width))
    return np.concatenate(keys), np.concatenate(is_val), near


# --- second pass: hashes of all documents -----------------------------------------------------------------------------


def _duplicates(
    params: Clean, keys: np.ndarray, is_val: np.ndarray, near: near_duplicates.NearDuplicates | None
) -> np.ndarray:
    """Index into account.LATER of why a document is dropped; 0: it stays. The val copy stays, then the first one."""
    dropped = np.zeros(len(keys), np.uint8)
    order = np.argsort(~is_val, kind="stable")
    if params.exact_duplicates:
        _, first = np.unique(keys[order], return_index=True)
        double = np.ones(len(keys), bool)
        double[order[first]] = False
        dropped[double] = Account.LATER.index("exact_duplicate")
    if near is not None:
        left = order[dropped[order] == 0]
        dropped[near.find(left)] = Account.LATER.index("near_duplicate")
    return dropped


def _losses(raw: Path, account: Account, dropped: np.ndarray) -> str:
    """What became of the raw documents, in words for an error."""
    report = account.report()
    lost = Counter({reason: entry["documents"] for reason, entry in report["dropped"].items()})
    lost += Counter(dict(zip(Account.LATER, np.bincount(dropped, minlength=len(Account.LATER)).tolist(), strict=True)))
    del lost["kept"]
    why = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in lost.most_common())
    return f"{raw} has {report['documents_in']:,} (dropped: {why or 'none'})"


def _sides(keys: np.ndarray, is_val: np.ndarray, stays: np.ndarray, by_hash: bool, losses: str) -> int:
    """See that both sides of the split have documents; few documents may all fall on one side, then one moves.

    losses: what became of the other documents, for the errors.
    """
    left = np.flatnonzero(stays)
    n_val = int(is_val[left].sum())
    if len(left) == 0:
        raise UserError(f"clean: no document is left: {losses}; see params clean.*, and reports/download.json")
    if 0 < n_val < len(left):
        return 0
    if len(left) == 1:
        raise UserError(
            f"clean: one document is left, and val needs one of its own: {losses}; add documents, or see download.split"
        )
    if not by_hash:
        side = "train" if n_val else "val"
        raise UserError(f"clean: every {side} document of the source was dropped: {losses}; see params clean.*")
    pick = left[np.argmax(keys[left]) if n_val else np.argmin(keys[left])]
    is_val[pick] = not is_val[pick]
    side = "train" if n_val else "val"
    console.warn(f"clean: none of {len(left)} documents falls to {side} by its hash; one was moved there")
    return 1


# --- third pass: write ------------------------------------------------------------------------------------------------


def _write(
    params: Clean,
    work: Path,
    folder: Path,
    keys: np.ndarray,
    is_val: np.ndarray,
    dropped: np.ndarray,
    account: Account,
) -> np.ndarray:
    """Write what stays to train and val; what overlaps with benchmarks or val is dropped from train here."""
    sought = decontamination.sought(params, lambda: _val_texts(work / "scrubbed", is_val & (dropped == 0)))
    row = 0
    with (
        Shards(folder / "train", SCHEMA) as train,
        Shards(folder / "val", SCHEMA) as val,
        console.progress("clean: writing", len(keys), "documents") as advance,
    ):
        for table in tables(work / "scrubbed"):
            advance(len(table))
            rows = slice(row, row + len(table))
            row += len(table)
            here, side = dropped[rows], is_val[rows]
            for reason, ngrams in sought.items():
                candidates = np.flatnonzero((here == 0) & ~side)
                texts = table.column("text").take(pa.array(candidates)).combine_chunks()
                overlaps = decontamination.overlaps(texts, params.decontaminate_ngram, ngrams)
                here[candidates[overlaps]] = Account.LATER.index(reason)
            ids = pa.array([f"{key:016x}" for key in keys[rows].tolist()])
            table = table.append_column("id", ids)
            account.written(table, here, side)
            train.write(table.filter(pa.array((here == 0) & ~side)))
            val.write(table.filter(pa.array((here == 0) & side)))
    if not train.documents:
        raise UserError("clean: every training document overlaps with val or a benchmark (clean.decontaminate*)")
    return dropped


def _val_texts(folder: Path, wanted: np.ndarray) -> Iterator[pa.Array]:
    row = 0
    for table in tables(folder):
        some = table.column("text").filter(pa.array(wanted[row : row + len(table)]))
        row += len(table)
        yield some.combine_chunks()


# --- the raw shards ---------------------------------------------------------------------------------------------------


def _raw_shards(raw: Path) -> list[Path]:
    shards = sorted(raw.glob("part-*.parquet"))
    if not shards:
        raise UserError(f"clean: no part-*.parquet in {raw}; run the stage download first")
    for path in shards:
        try:
            names = set(pq.read_schema(path).names)
        except pa.ArrowInvalid as error:
            raise UserError(f"clean: {path} is damaged ({error}); run the stage download again") from None
        if not names >= _RAW:
            raise UserError(
                f"clean: {path} lacks the column {', '.join(sorted(_RAW - names))}; it has {', '.join(names)}"
            )
    return shards


def _has_val(path: Path) -> bool:
    """Whether some document of a shard is marked val."""
    with pq.ParquetFile(path) as file:
        return any(
            pc.any(pc.equal(batch.column(0), "val")).as_py() or False
            for batch in file.iter_batches(2**16, columns=["split"])
        )
