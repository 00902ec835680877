"""The books of cleaning: documents and bytes in and out of every step, examples of what was dropped, the plots."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.clean.scrubbing import REASONS, REWRITES
from pipeline.documents.shards import byte_lengths
from pipeline.files import written_whole
from pipeline.params import Clean

_EXAMPLES, _EXAMPLE_CHARS = 3, 300
_EDGES = 2.0 ** np.arange(0, 31)  # of the length histogram, bytes


class Account:
    """Filled by the passes of cleaning in the order of the documents; `report` is what reports/clean.json holds.

    In every step: bytes_out = bytes_in - bytes_dropped + bytes_changed, and each step takes what the last gave.
    """

    LATER = ("kept", "exact_duplicate", "near_duplicate", "benchmark_overlap", "val_overlap")

    def __init__(self, params: Clean) -> None:
        self._steps = _steps(params)
        self.splits_given = False
        self._documents_in = 0
        self._rewritten = np.zeros(1 + len(REWRITES), np.int64)  # bytes before and after each rewrite
        self._changed = np.zeros(len(REWRITES), np.int64)  # documents
        self._dropped: dict[str, dict[str, Any]] = defaultdict(lambda: {"documents": 0, "bytes": 0, "examples": []})
        self._sides: dict[str, Counter[str]] = {"train": Counter(), "val": Counter()}
        self._sources: dict[str, Counter[str]] = defaultdict(Counter)
        self._lengths_in, self._lengths_out = np.zeros(len(_EDGES) - 1, np.int64), np.zeros(len(_EDGES) - 1, np.int64)

    def scrubbed(self, batch: pa.RecordBatch) -> None:
        """Enter a batch of the first pass."""
        sizes = batch.column("bytes").flatten().to_numpy().reshape(len(batch), 1 + len(REWRITES))
        changed, reason = batch.column("changed").to_numpy(), batch.column("reason").to_numpy()
        self._documents_in += len(batch)
        self._rewritten += sizes.sum(axis=0)
        self._changed += [int((changed >> bit & 1).sum()) for bit in range(len(REWRITES))]
        self._lengths_in += np.histogram(sizes[:, 0], _EDGES)[0]
        self._drop(batch, reason, REASONS, sizes[:, -1])

    def written(self, table: pa.Table, dropped: np.ndarray, is_val: np.ndarray) -> None:
        """Enter a batch of the third pass: index into LATER of each document, and its side."""
        sizes = byte_lengths(table.column("text"))
        self._drop(table, dropped, self.LATER, sizes)
        kept = dropped == 0
        self._lengths_out += np.histogram(sizes[kept], _EDGES)[0]
        for side, here in (("train", kept & ~is_val), ("val", kept & is_val)):
            self._sides[side].update(documents=int(here.sum()), bytes=int(sizes[here].sum()))
        names = table.column("source").combine_chunks().dictionary_encode()
        index = names.indices.to_numpy()[kept]
        documents = np.bincount(index, minlength=len(names.dictionary)).tolist()
        total = np.bincount(index, weights=sizes[kept], minlength=len(names.dictionary)).tolist()
        for name, n_documents, n_bytes in zip(names.dictionary.to_pylist(), documents, total, strict=True):
            if n_documents:
                self._sources[name].update(documents=n_documents, bytes=int(n_bytes))

    def _drop(self, table: Any, reason: np.ndarray, names: tuple[str, ...], sizes: np.ndarray) -> None:
        for index in np.unique(reason[reason > 0]).tolist():
            rows = np.flatnonzero(reason == index)
            entry = self._dropped[names[index]]
            entry["documents"] += len(rows)
            entry["bytes"] += int(sizes[rows].sum())
            wanted = rows[: _EXAMPLES - len(entry["examples"])]
            texts = pc.utf8_slice_codeunits(table.column("text").take(pa.array(wanted)), 0, _EXAMPLE_CHARS)
            entry["examples"] += texts.to_pylist()

    def report(self) -> dict[str, Any]:
        """Counts of every step in order, then of every reason, side and source."""
        steps: dict[str, Any] = {}
        documents, size = self._documents_in, int(self._rewritten[0])
        for name, reasons in self._steps.items():
            rewrite = REWRITES.index(name) if name in REWRITES else None
            entry = {"documents_in": documents, "bytes_in": size}
            entry["documents_dropped"] = sum(self._dropped[r]["documents"] for r in reasons if r in self._dropped)
            entry["bytes_dropped"] = sum(self._dropped[r]["bytes"] for r in reasons if r in self._dropped)
            entry["documents_changed"] = int(self._changed[rewrite]) if rewrite is not None else 0
            entry["bytes_changed"] = int(np.diff(self._rewritten)[rewrite]) if rewrite is not None else 0
            documents -= entry["documents_dropped"]
            size += entry["bytes_changed"] - entry["bytes_dropped"]
            steps[name] = entry | {"documents_out": documents, "bytes_out": size}
        return {
            "documents_in": self._documents_in,
            "documents_out": documents,
            "bytes_in": int(self._rewritten[0]),
            "bytes_out": size,
            **{side: dict(counts) for side, counts in self._sides.items()},
            "steps": steps,
            "dropped": {
                name: self._dropped[name]
                for reasons in self._steps.values()
                for name in reasons
                if name in self._dropped
            },
            "sources": {name: dict(counts) for name, counts in sorted(self._sources.items())},
        }

    def draw(self, plots: Path) -> None:
        """Write funnel.png and lengths.png."""
        from matplotlib.figure import Figure

        report = self.report()
        labels = ["raw", *(name.replace("_", " ") for name in report["steps"])]
        sizes = [report["bytes_in"], *(step["bytes_out"] for step in report["steps"].values())]
        counts = [report["documents_in"], *(step["documents_out"] for step in report["steps"].values())]
        funnel = Figure(figsize=(8, 0.5 + 0.4 * len(labels)), layout="constrained")
        axes = funnel.subplots()
        bars = axes.barh(labels, [size / 1e6 for size in sizes], color="tab:blue")
        axes.bar_label(bars, [f"{count:,} documents" for count in counts], padding=4)
        axes.invert_yaxis()
        axes.margins(x=0.25)
        axes.set(xlabel="text after the step, MB", title="What cleaning keeps")
        lengths = Figure(figsize=(8, 4), layout="constrained")
        axes = lengths.subplots()
        axes.stairs(self._lengths_in, _EDGES, label="raw", fill=True, alpha=0.4)
        axes.stairs(self._lengths_out, _EDGES, label="clean", linewidth=2)
        used = np.flatnonzero(self._lengths_in + self._lengths_out)
        axes.set(xscale="log", xlabel="length of a document, bytes", ylabel="documents", title="Lengths of documents")
        axes.set_xlim(_EDGES[used[0]] if len(used) else 1, _EDGES[used[-1] + 1] if len(used) else 2)
        axes.legend()
        for name, figure in (("funnel.png", funnel), ("lengths.png", lengths)):
            with written_whole(plots / name) as partial:
                figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})


def _steps(params: Clean) -> dict[str, tuple[str, ...]]:
    """The steps that are switched on, in order, and the reasons for which each may drop a document."""
    quality = tuple(name for name in REASONS if name.startswith("quality"))
    steps: dict[str, tuple[str, ...]] = {name: () for name in REWRITES if getattr(params, name) not in (False, "none")}
    steps["length"] = ("too_short", "too_long")
    steps |= {"script": ("script",)} if params.script != "any" else {}
    steps |= {"quality": quality} if params.quality.enabled else {}
    steps |= {"exact_duplicates": ("exact_duplicate",)} if params.exact_duplicates else {}
    steps |= {"near_duplicates": ("near_duplicate",)} if params.near_duplicates.enabled else {}
    steps |= {"decontaminate": ("benchmark_overlap",)} if params.decontaminate else {}
    return steps | ({"decontaminate_val": ("val_overlap",)} if params.decontaminate_val else {})
