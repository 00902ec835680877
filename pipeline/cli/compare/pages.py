"""Settings side by side: lines for a terminal, and one page with curves that fetches nothing.

show(settings); write(Path("reports/compare.html"), settings)
"""

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from pipeline import console
from pipeline.cli.compare.experiments import Point, Setting
from pipeline.files import written_whole
from pipeline.plotting import new, style, svg

# Colours of lines, told apart by those who cannot see all of them (Okabe and Ito 2008); then dashed, then dotted.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a")
_DASHES = ("-", "--", ":")
# The head of each column, the figure and how it is written; a spread over seeds only where they differ.
_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("bits per byte", "bits_per_byte", "{:.4f}".format),
    ("loss", "loss", "{:.4f}".format),
    ("tokens/s", "tokens_per_second", "{:,.0f}".format),
    ("parameters", "parameters", lambda n: f"{n / 1e6:,.2f} M"),
    ("active", "active_parameters", lambda n: f"{n / 1e6:,.2f} M"),
)


def rows(settings: list[Setting]) -> list[list[str]]:
    """A row a setting, the head first: its name, how many runs it has, the mean of each figure ± half its range."""
    known = {name for _, name, _ in _COLUMNS for setting in settings if setting.figures(name)}
    known -= {"loss"} if "bits_per_byte" in known else set()  # which says it whatever the vocabulary
    shown = [column for column in _COLUMNS if column[1] in known]
    lines = [["", "runs", *(head for head, _, _ in shown)]]
    for setting in settings:
        cells = [_cell(setting.figures(name), written) for _, name, written in shown]
        lines.append([setting.name, str(len(setting.experiments)), *cells])
    return lines


def _cell(values: list[float], written: Callable[[float], str]) -> str:
    if not values:
        return "–"
    half = (max(values) - min(values)) / 2
    return written(statistics.mean(values)) + (f" ± {written(half)}" if half else "")


def show(settings: list[Setting]) -> None:
    """The table in the terminal."""
    head, *lines = rows(settings)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.table(table)


def write(into: Path, settings: list[Setting]) -> None:
    """The page: the table, the loss over tokens and over seconds, and each run by its name."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.cli.compare"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    head, *lines = rows(settings)
    page = environment.get_template("compare.html.jinja").render(
        head=head,
        lines=[{"cells": line, "look": _look(i)} for i, line in enumerate(lines)],
        pictures={name: Markup(text) for name, text in _pictures(settings)},
        parameters=list(settings[0].differences),
        runs=[(setting, each) for setting in settings for each in setting.experiments],
    )
    into.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(into) as partial:
        partial.write_text(page, encoding="utf-8")


def _look(number: int) -> dict[str, Any]:
    dashes = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": dashes}


def _pictures(settings: list[Setting]) -> Iterator[tuple[str, str]]:
    if not any(each.curve for setting in settings for each in setting.experiments):
        return
    with style():
        yield "tokens", svg(_curves(settings, "tokens", lambda point: point.tokens))
        yield "seconds", svg(_curves(settings, "seconds of training", lambda point: point.seconds))


def _curves(settings: list[Setting], xlabel: str, of: Callable[[Point], float]) -> Figure:
    """A line a run, in its setting's colour. Loss on a logarithmic axis: what matters late is small."""
    figure, axes = new(5.2, 3.4, xlabel=xlabel, ylabel="loss on val samples, nats per token", yscale="log")
    for i, setting in enumerate(settings):
        for each in setting.experiments:
            points = [(of(point), point.loss) for point in each.curve]
            axes.plot(*zip(*points, strict=True), **_look(i), lw=1.4, marker="o", ms=2.5) if points else None
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=8)
    return figure
