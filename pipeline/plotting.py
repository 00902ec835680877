"""The look of every picture, and the one way to write a PNG: the same numbers give the same bytes.

with style():
    figure, axes = new(4.2, 2.6, xlabel="tokens", ylabel="loss, nats per token")     # inches
    axes.plot(tokens, loss, color=FIRST)
    save(figure, Path("reports/plots/train/loss.png"))
"""

import io
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from pipeline.files import written_whole

# FIRST and SECOND are the two series: a contrast of 4.5:1 on white.
INK, MUTED, LINE, FIRST, SECOND = "#1d2430", "#5b6575", "#d9dee7", "#2a62c9", "#b3541e"
_CSS = {INK: "ink", MUTED: "muted", LINE: "line", FIRST: "first", SECOND: "second"}
# fmt: off
_CJK = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC", "Microsoft YaHei", "SimHei")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "pipeline", "font.size": 10, "text.color": INK,
    "axes.edgecolor": LINE, "axes.labelcolor": MUTED, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "axes.titlesize": 11, "grid.color": LINE, "grid.linewidth": 0.8,
    "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "legend.frameon": False, "lines.linewidth": 1.8,
}
# fmt: on
_CELLS_WITH_NUMBERS = 16  # columns up to which a heat map's cells are labelled


def style() -> AbstractContextManager[None]:
    """The settings to draw and save under. Chinese letters come from a font that is installed, if there is one."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return mpl.rc_context({**_STYLE, "font.family": ["sans-serif", *(name for name in _CJK if name in installed)]})


def new(width: float, height: float, **labels: Any) -> tuple[Figure, Axes]:
    """A figure of `width` x `height` inches and its axes; labels: xlabel, ylabel, title, xscale, …"""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot(**labels)


def loss_curve(points: dict[str, list[tuple[float, float]]], width: float, height: float) -> Figure:
    """Loss over tokens on logarithmic axes: `points` of "train" as a line, of "validation" as dots on a line."""
    figure, axes = new(width, height, xlabel="tokens", ylabel="loss, nats per token", xscale="log", yscale="log")
    looks: dict[str, Any] = {
        "train": {"color": FIRST, "lw": 1.2},
        "validation": {"color": SECOND, "marker": "o", "ms": 4},
    }
    for name, series in points.items():
        axes.plot(*zip(*series, strict=True), label=name, **looks[name])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend()
    return figure


def heat_map(values: np.ndarray, rows: list[str], columns: list[str], xlabel: str, width: float) -> Figure:
    """A cell for each of `values` [rows, columns], darker the larger it is: opacity of one colour, for any ground."""
    figure, axes = new(width, 0.9 + 0.32 * len(rows), xlabel=xlabel)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    for (y, x), value in np.ndenumerate(values):
        strength = 0.6 * value / (values.max() or 1.0)
        axes.add_patch(Rectangle((x + 0.03, y + 0.05), 0.94, 0.9, facecolor=FIRST, alpha=strength))
        if len(columns) <= _CELLS_WITH_NUMBERS:
            size = 9 if len(columns) <= 8 else 7
            axes.text(x + 0.5, y + 0.52, f"{value:.2f}", ha="center", va="center", fontsize=size)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    every = max(1, len(columns) // 16)
    axes.set_xticks([i + 0.5 for i in range(0, len(columns), every)], columns[::every])
    axes.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    axes.tick_params(length=0)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG on white, whole or not at all, with no date or version in it."""
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=144, facecolor="white", metadata={"Software": None})


def svg(figure: Figure) -> str:
    """The drawing as SVG to put into a page; its colours are CSS variables: light or dark as the page is."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9.]+_[0-9]+"', "", text)  # names nobody refers to, the same in every drawing
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for colour, name in _CSS.items():
        text = text.replace(colour, f"var(--{name})")
    return text
