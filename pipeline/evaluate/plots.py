"""Pictures of an evaluation: PNG and CSV for `dvc plots`, and the same drawings as SVG for the report.

    pictures = draw(details, curve, Path("reports/plots/evaluate"))     # {"experts": "<svg …>", …}

Each picture is a function in PICTURES. It is drawn once; in the SVG colours become CSS variables, so that the report
can be light or dark. Drawings are narrow, so that on a phone their letters keep their size.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from pipeline.plotting import FIRST, MUTED, heat_map, loss_curve, new, save, style, svg

Curve = dict[str, list[tuple[float, float]]]  # the points of train and validation: tokens seen, loss
Drawn = tuple[Figure, list[dict[str, Any]]]  # and the rows of its CSV; no rows: no CSV

_WIDTH, _HEIGHT = 4.2, 2.6  # inches
_FEWEST = 0.05  # of the tokens of the position that has most; below this a position's mean is noise


def draw(details: dict[str, Any], curve: Curve, into: Path) -> dict[str, str]:
    """Write NAME.png and NAME.csv of each picture that there is data for; return the SVGs by name."""
    into.mkdir(parents=True, exist_ok=True)
    svgs: dict[str, str] = {}
    with style():
        for name, (title, picture) in PICTURES.items():
            if (drawn := picture({**details, "curve": curve})) is None:
                continue
            figure, rows = drawn
            svgs[name] = svg(figure)
            figure.suptitle(title, fontsize=11)  # the report has captions of its own
            save(figure, into / f"{name}.png")
            if rows:
                pa.csv.write_csv(pa.Table.from_pylist(rows), into / f"{name}.csv")
    return svgs


def _curve(details: dict[str, Any]) -> Drawn | None:
    return (loss_curve(details["curve"], _WIDTH, _HEIGHT), []) if details["curve"] else None


def _by_position(details: dict[str, Any]) -> Drawn:
    """Mean over runs of positions that double in length, over the single positions in pale."""
    most = max(p["tokens"] for p in details["by_position"])
    rows = [p for p in details["by_position"] if p["tokens"] >= _FEWEST * most]
    figure, axes = new(_WIDTH, _HEIGHT, xlabel="tokens of context", ylabel="loss, nats per token")
    context_P, loss_P, tokens_P = (np.array([p[name] for p in rows]) for name in ("context", "loss", "tokens"))
    axes.plot(context_P, loss_P, color=FIRST, alpha=0.35, linewidth=0.9, label="each position")
    run_P = np.floor(2 * np.log2(context_P)).astype(int)
    means = [
        (np.average(context_P[run_P == r], weights=tokens_P[run_P == r]),
         np.average(loss_P[run_P == r], weights=tokens_P[run_P == r]))
        for r in np.unique(run_P)
    ]  # fmt: skip
    axes.plot(*zip(*means, strict=True), color=FIRST, marker="o", markersize=4, label="mean around it")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.legend()
    return figure, rows


def _by_length(details: dict[str, Any]) -> Drawn:
    rows = details["by_length"]
    figure, axes = new(_WIDTH, _HEIGHT, xlabel="tokens in the document", ylabel="loss, nats per token")
    names = [f"{g['shortest']}\N{EN DASH}{g['longest']}" for g in rows]
    axes.bar(range(len(names)), [g["loss"] for g in rows], color=FIRST, width=0.7)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axes.grid(axis="x", visible=False)
    return figure, rows


def _calibration(details: dict[str, Any]) -> Drawn:
    rows = details["calibration"]["bins"]
    figure, axes = new(_WIDTH, _HEIGHT, xlabel="probability of the first choice", ylabel="share that was right")
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="perfectly calibrated")
    most = max(b["tokens"] for b in rows)
    stated, right = [b["probability"] for b in rows], [b["accuracy"] for b in rows]
    axes.plot(stated, right, color=FIRST, linewidth=1.2)
    axes.scatter(stated, right, s=[6 + 70 * b["tokens"] / most for b in rows], color=FIRST, label="model")
    axes.legend(loc="upper left")
    return figure, rows


def _experts(details: dict[str, Any]) -> Drawn | None:
    """Load over an even share; layers and experts are numbered from 0, as in the names of the weights."""
    if not details["routing"]:
        return None
    load_LE = np.array(details["routing"]["load"])
    return _heat(details, "load", load_LE * load_LE.shape[1], "expert", list(range(load_LE.shape[1])))


def _agreement(details: dict[str, Any]) -> Drawn | None:
    layers = details["routing"].get("layers", [])
    if len(layers) < 2:
        return None
    return _heat(details, "agreement", np.array(details["routing"]["agreement"]), "other layer", layers)


def _heat(details: dict[str, Any], name: str, values: np.ndarray, what: str, columns: list[int]) -> Drawn:
    layers = details["routing"]["layers"]
    figure = heat_map(values, [f"layer {i}" for i in layers], [str(c) for c in columns], what, _WIDTH)
    return figure, [{"layer": layers[y], what: columns[x], name: float(v)} for (y, x), v in np.ndenumerate(values)]


PICTURES: dict[str, tuple[str, Callable[[dict[str, Any]], Drawn | None]]] = {
    "curve": ("Loss while training", _curve),
    "by_position": ("Loss by context", _by_position),
    "by_length": ("Loss by length of the document", _by_length),
    "calibration": ("Calibration", _calibration),
    "experts": ("Load of each expert over an even share", _experts),
    "agreement": ("Agreement between layers", _agreement),
}
