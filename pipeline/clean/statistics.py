"""What cleaning did: documents and bytes in and out of every rule, examples of what was dropped, the plots.

    statistics = Statistics(params.clean)      # filled by the passes of cleaning in the order of the documents
    statistics.report()                        # what reports/clean.json holds

For every rule: bytes_out = bytes_in - bytes_dropped + bytes_changed, and each rule takes what the last one gave.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import console, plotting
from pipeline.clean.rules import REWRITES, RULES, active
from pipeline.documents.shards import byte_lengths
from pipeline.params import Clean

_EXAMPLES, _EXAMPLE_CHARS = 3, 300
_SOURCES = 20  # that the report names; a corpus of many files would make it as long as itself
_EDGES = 2.0 ** np.arange(0, 40, 0.125)  # of the length histogram, bytes


class Statistics:
    def __init__(self, params: Clean) -> None:
        self._rules = active(params)
        self.documents_in = self._documents_changed = 0
        self._rewritten = np.zeros(1 + len(REWRITES), np.int64)  # bytes before the first rewrite and after each
        self._changed = np.zeros(len(REWRITES), np.int64)  # documents
        self._dropped = np.zeros((2, 1 + len(RULES)), np.int64)  # documents and bytes by the rule's number
        self._examples: dict[int, list[str]] = defaultdict(list)
        self._splits: dict[str, Counter[str]] = {"train": Counter(), "val": Counter()}
        self._sources: dict[str, Counter[str]] = defaultdict(Counter)
        self._lengths_in, self._lengths_out = np.zeros((2, len(_EDGES) - 1), np.int64)

    def judged(self, batch: pa.RecordBatch) -> None:
        """Count a batch of the first pass."""
        sizes = batch.column("bytes").flatten().to_numpy().reshape(len(batch), 1 + len(REWRITES))
        changed = batch.column("changed").to_numpy()
        self.documents_in += len(batch)
        self._documents_changed += int((changed > 0).sum())
        self._rewritten += sizes.sum(axis=0)
        self._changed += [int((changed >> bit & 1).sum()) for bit in range(len(REWRITES))]
        self._lengths_in += np.histogram(sizes[:, 0], _EDGES)[0]
        self._drop(batch, batch.column("reason").to_numpy(), sizes[:, -1])

    def written(self, table: pa.Table, reason: np.ndarray, is_val: np.ndarray) -> None:
        """Count a batch of the third pass: the number of the rule that drops each document (0: none), and its split."""
        sizes = byte_lengths(table.column("text"))
        self._drop(table, reason, sizes)
        kept = reason == 0
        self._lengths_out += np.histogram(sizes[kept], _EDGES)[0]
        for split, here in (("train", kept & ~is_val), ("val", kept & is_val)):
            self._splits[split].update(documents=int(here.sum()), bytes=int(sizes[here].sum()))
        sources = pa.table({"source": table.column("source"), "bytes": sizes}).filter(pa.array(kept)).group_by("source")
        for row in sources.aggregate([("bytes", "count"), ("bytes", "sum")]).to_pylist():
            self._sources[row["source"]].update(documents=row["bytes_count"], bytes=row["bytes_sum"])

    def _drop(self, table: Any, reason: np.ndarray, sizes: np.ndarray) -> None:
        for number in np.unique(reason[reason > 0]).tolist():
            rows = np.flatnonzero(reason == number)
            self._dropped[:, number] += len(rows), sizes[rows].sum()
            wanted = pa.array(rows[: _EXAMPLES - len(self._examples[number])])
            texts = pc.utf8_slice_codeunits(table.column("text").take(wanted), 0, _EXAMPLE_CHARS)
            self._examples[number] += texts.to_pylist()

    def dropped(self, reason: np.ndarray) -> dict[str, int]:
        """How many documents each rule dropped so far, and those of `reason`, which are not counted yet."""
        counts = self._dropped[0] + np.bincount(reason, minlength=1 + len(RULES))
        return {rule.name: int(counts[number]) for number, rule in self._rules}

    def report(self) -> dict[str, Any]:
        """Counts of every rule in order, then of every split and source."""
        steps: dict[str, Any] = {}
        dropped: dict[str, Any] = {}
        documents, size = self.documents_in, int(self._rewritten[0])
        for number, rule in self._rules:
            entry = {"documents_in": documents, "bytes_in": size, "documents_changed": 0, "bytes_changed": 0}
            entry["documents_dropped"], entry["bytes_dropped"] = self._dropped[:, number].tolist()
            if rule in REWRITES:
                at = REWRITES.index(rule)
                entry["documents_changed"] = int(self._changed[at])
                entry["bytes_changed"] = int(self._rewritten[at + 1] - self._rewritten[at])
            documents -= entry["documents_dropped"]
            size += entry["bytes_changed"] - entry["bytes_dropped"]
            steps[rule.name] = entry | {"documents_out": documents, "bytes_out": size}
            if entry["documents_dropped"]:
                counts = {"documents": entry["documents_dropped"], "bytes": entry["bytes_dropped"]}
                dropped[rule.name] = counts | {"examples": self._examples[number]}
        return {
            "documents_in": self.documents_in,
            "documents_out": documents,
            "documents_changed": self._documents_changed,
            "bytes_in": int(self._rewritten[0]),
            "bytes_out": size,
            **{split: dict(counts) for split, counts in self._splits.items()},
            "steps": steps,
            "dropped": dropped,
            "sources": self._largest_sources(),
        }

    def _largest_sources(self) -> dict[str, dict[str, int]]:
        """Documents and bytes of the largest sources by name, and of all others together."""
        ordered = sorted(self._sources.items(), key=lambda source: (-source[1]["bytes"], source[0]))
        largest = {name: dict(counts) for name, counts in sorted(ordered[:_SOURCES])}
        if others := [counts for _, counts in ordered[_SOURCES:]]:
            largest["(other sources)"] = {"sources": len(others), **sum(others, Counter())}
        return largest

    def warn(self) -> None:
        """Warn of a rule that drops more than half of what it is given: it may not fit the text."""
        steps = self.report()["steps"]
        for _, rule in self._rules:
            dropped, given = steps[rule.name]["documents_dropped"], steps[rule.name]["documents_in"]
            if 2 * dropped > given:
                console.warn(f"the rule {rule.name} dropped {dropped:,} of {given:,} documents: {rule.why}")

    def draw(self, plots: Path) -> None:
        """Write funnel.png and lengths.png."""
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

        report = self.report()
        labels = ["raw", *(name.replace("_", " ") for name in report["steps"])]
        sizes = [report["bytes_in"], *(step["bytes_out"] for step in report["steps"].values())]
        counts = [report["documents_in"], *(step["documents_out"] for step in report["steps"].values())]
        thousands = FuncFormatter(lambda x, _: f"{x:,.0f}")
        with plotting.style():
            figure, axes = plotting.new(7, 1 + 0.3 * len(labels), xlabel="text after the step, MB", title="Cleaning")
            axes.barh(range(len(labels)), [size / 1e6 for size in sizes], color=plotting.FIRST)
            axes.set_yticks(range(len(labels)), labels)
            axes.grid(visible=False, axis="y")
            axes.invert_yaxis()
            right = axes.secondary_yaxis("right")  # a column of its own, so that no number lies over the frame
            right.set_yticks(range(len(counts)), [f"{count:,} documents" for count in counts])
            plotting.save(figure, plots / "funnel.png")

            figure, axes = plotting.new(7, 3.5, title="Lengths of documents", xlabel="bytes", ylabel="documents")
            axes.stairs(self._lengths_in, _EDGES, label="raw", fill=True, color=plotting.MUTED, alpha=0.4)
            axes.stairs(self._lengths_out, _EDGES, label="clean", linewidth=1.8, color=plotting.FIRST)
            used = np.flatnonzero(self._lengths_in + self._lengths_out)
            axes.set_xscale("log")
            low, high = (_EDGES[max(0, used[0] - 1)], _EDGES[used[-1] + 2]) if len(used) else (1, 2)
            axes.set_xlim(low, high)
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(thousands)
            axes.yaxis.set_major_formatter(thousands)
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend()
            plotting.save(figure, plots / "lengths.png")


def in_words(counts: dict[str, int]) -> str:
    """Numbers of documents by rule, the largest first: 12 near duplicates, 3 too short."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in ordered if n)


def summary(report: dict[str, Any]) -> str:
    """What the stage's last line says of its report: what was rewritten, dropped and kept, by which rules."""

    def by_rule(kind: str) -> str:
        counts = {name: step[f"documents_{kind}"] for name, step in report["steps"].items()}
        return f" ({in_words(counts)})" if any(counts.values()) else ""

    given, kept = report["documents_in"], report["documents_out"]
    return (
        f"rewrote {report['documents_changed']:,} of {given:,} documents{by_rule('changed')}, dropped {given - kept:,}"
        f"{by_rule('dropped')}, kept {kept:,}, {report['val']['documents']:,} of them val"
    )
