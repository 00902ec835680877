"""Pictures of an evaluation: PNG and CSV for `dvc plots`, and the same drawings as SVG for the report.

    pictures = draw(details, curve, Path("reports/plots/evaluate"))     # {"experts": "<svg …>", …}

Each is drawn once, in the colours of INK; in the SVG these become CSS variables, so that the report can be light or
dark. Drawings are narrow, so that on a phone their letters keep their size.
"""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colour on paper → name of the CSS variable. The two series keep 4.5:1 on white and, in the report, on dark as well.
INK = {"#1d2430": "ink", "#5b6575": "muted", "#d9dee7": "line", "#2a62c9": "first", "#b3541e": "second"}
_INK, _MUTED, _LINE, _FIRST, _SECOND = INK
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # real letters: they take the page's font, and can be read aloud
    "svg.hashsalt": "evaluation",
    "font.size": 10,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "text.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
_CELLS_WITH_NUMBERS = 16  # columns up to which a heat map's cells are labelled


def draw(details: dict[str, Any], curve: list[dict[str, float]], into: Path) -> dict[str, str]:
    """Write NAME.png and NAME.csv for each picture there is data for; return the SVGs by name.

    `curve`: rows of the training run with `tokens` and `loss`, some with `val_loss`; may be empty.
    """
    into.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, str] = {}

    def keep(name: str, figure: Figure, rows: Iterable[dict[str, Any]]) -> None:
        figure.savefig(into / f"{name}.png", dpi=144, facecolor="white", metadata={"Software": None})
        _write_csv(into / f"{name}.csv", list(rows))
        pictures[name] = _svg(figure)

    with mpl.rc_context(_STYLE):
        if curve:
            keep("curve", _curve(curve), curve)
        keep("by_position", _by_position(details["by_position"]), details["by_position"])
        keep("by_length", _by_length(details["by_length"]), details["by_length"])
        keep("calibration", _calibration(details["calibration"]), details["calibration"]["bins"])
        if details["routing"]:
            routing = details["routing"]
            layers = [f"layer {layer + 1}" for layer in routing["layers"]]
            experts = [str(e + 1) for e in range(len(routing["load"][0]))]
            load = np.array(routing["load"]) * len(experts)
            keep(
                "experts",
                _heat(load, layers, experts, "expert", float(load.max())),
                _cells(layers, experts, load, "load"),
            )
            if len(layers) > 1:
                same = np.array(routing["agreement"])
                short = [str(layer + 1) for layer in routing["layers"]]
                keep("agreement", _heat(same, layers, short, "layer", 1.0), _cells(layers, short, same, "agreement"))
    return pictures


def _axes(height: float = 2.6, **labels: str) -> Axes:
    return Figure(figsize=(4.2, height), layout="constrained").add_subplot(**labels)  # type: ignore[no-any-return]


def _done(axes: Axes) -> Figure:
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure


def _curve(curve: list[dict[str, float]]) -> Figure:
    axes = _axes(xlabel="tokens, millions", ylabel="loss, nats per token")
    for name, label, colour in (("loss", "train", _FIRST), ("val_loss", "validation", _SECOND)):
        points = [(row["tokens"] / 1e6, row[name]) for row in curve if name in row]
        if points:
            marker = {"marker": "o", "markersize": 4} if name == "val_loss" else {"linewidth": 1.2}
            axes.plot(*zip(*points, strict=True), color=colour, label=label, **marker)  # type: ignore[arg-type]
    axes.legend()
    return _done(axes)


def _by_position(positions: list[dict[str, float]]) -> Figure:
    """Mean over runs of positions that double in length, over the single positions in pale."""
    axes = _axes(xlabel="tokens of context", ylabel="loss, nats per token")
    context = np.array([p["context"] for p in positions])
    loss, tokens = np.array([p["loss"] for p in positions]), np.array([p["tokens"] for p in positions])
    axes.plot(context, loss, color=_FIRST, alpha=0.35, linewidth=0.9, label="each position")
    run = np.floor(2 * np.log2(context)).astype(int)
    runs = np.unique(run)
    middle = [np.average(context[run == r], weights=tokens[run == r]) for r in runs]
    mean = [np.average(loss[run == r], weights=tokens[run == r]) for r in runs]
    axes.plot(middle, mean, color=_FIRST, marker="o", markersize=4, label="mean around it")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axes.legend()
    return _done(axes)


def _by_length(lengths: list[dict[str, float]]) -> Figure:
    axes = _axes(xlabel="tokens in the document", ylabel="loss, nats per token")
    names = [f"{g['shortest']}\N{EN DASH}{g['longest']}" for g in lengths]
    axes.bar(range(len(names)), [g["loss"] for g in lengths], color=_FIRST, width=0.7)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axes.grid(axis="x", visible=False)
    return _done(axes)


def _calibration(calibration: dict[str, Any]) -> Figure:
    axes = _axes(xlabel="probability of the first choice", ylabel="share that was right")
    axes.plot([0, 1], [0, 1], color=_MUTED, linestyle="--", linewidth=1, label="perfectly calibrated")
    bins: list[dict[str, Any]] = calibration["bins"]
    most = max(int(b["tokens"]) for b in bins)
    stated, right = [b["probability"] for b in bins], [b["accuracy"] for b in bins]
    axes.plot(stated, right, color=_FIRST, linewidth=1.2)
    axes.scatter(stated, right, s=[6 + 70 * b["tokens"] / most for b in bins], color=_FIRST, label="model")
    axes.legend(loc="upper left")
    return _done(axes)


def _heat(values: np.ndarray, rows: list[str], columns: list[str], xlabel: str, full: float) -> Figure:
    """Cells as dark as their value; `full` is the darkest. Opacity of one colour, so that it works on any ground."""
    axes = _axes(height=0.9 + 0.32 * len(rows), xlabel=xlabel)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    numbers = len(columns) <= _CELLS_WITH_NUMBERS
    for y, x in np.ndindex(values.shape):
        strength = float(np.clip(values[y, x] / full, 0, 1))
        axes.add_patch(mpl.patches.Rectangle((x + 0.03, y + 0.05), 0.94, 0.9, facecolor=_FIRST, alpha=0.6 * strength))
        if numbers:
            text = f"{values[y, x]:.2f}"
            axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=9 if len(columns) <= 8 else 7)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    every = max(1, len(columns) // 16)
    axes.set_xticks([i + 0.5 for i in range(0, len(columns), every)], columns[::every])
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    axes.tick_params(length=0)
    return _done(axes)


def _cells(rows: list[str], columns: list[str], values: np.ndarray, name: str) -> list[dict[str, Any]]:
    places = np.ndindex(values.shape)
    return [{"layer": rows[y], "column": columns[x], name: float(values[y, x])} for y, x in places]


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9.]+_[0-9]+"', "", text)  # names nobody refers to, the same in every drawing
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for colour, name in INK.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
