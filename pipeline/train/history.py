"""The metrics of a run as it goes: CSVs beside the checkpoints, DVCLive's files, W&B; rewound when a run resumes.

history = History(folder, live_folder, run, moe_layers=[1, 2], first_step=0)
history.add({"step": 20, "tokens": 20480, "loss": 3.2, "lr": 1e-3}, routing)
"""

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from dvclive import Live

from pipeline import plotting, tracking
from pipeline.files import written_whole
from pipeline.model.routing import RoutingStats

COLUMNS = (
    *("step", "tokens", "seconds", "loss", "val_loss", "lm_loss", "balance_loss", "z_loss", "lr", "grad_norm"),
    *("tokens_per_second", "mfu", "load_entropy", "max_violation", "dead_experts", "router_confidence"),
    "non_finite_steps",
)
OF_LAYER = ("load_entropy", "max_violation", "dead_experts", "router_entropy", "confidence")


class History:
    """metrics.csv (a row a log) and experts.csv (a row a log and MoE layer, numbered from 1), and whoever watches.

    `tokens_per_expert` in experts.csv: assignments since the row before, one number an expert, a space between.
    They lie outside of DVC's outputs, which DVC removes before a stage runs again.
    """

    def __init__(
        self, folder: Path, live: Path, run: tracking.Run | None, moe_layers: list[int], first_step: int
    ) -> None:
        """Go on after `first_step`: what a killed run wrote beyond it is dropped, the rest is shown again."""
        self._run, self.moe_layers = run, moe_layers
        self._metrics = _Table(folder / "metrics.csv", COLUMNS, first_step)
        self._experts = _Table(folder / "experts.csv", ("step", "layer", *OF_LAYER, "tokens_per_expert"), first_step)
        self.rows = self._metrics.rows
        shutil.rmtree(live, ignore_errors=True)  # of another run, which plots would show as this one's
        # Neither a dvc.yaml of its own nor an experiment: the stage's dvc.yaml says what is plotted.
        self._live = Live(dir=os.fspath(live), dvcyaml=False, save_dvc_exp=False)
        for row in self.rows:
            self._show({k: float(v) for k, v in row.items() if v != ""})

    def add(self, row: dict[str, float], layers: list[RoutingStats]) -> None:
        """Some of COLUMNS, `step` and `tokens` among them, and each MoE layer's routing."""
        self._metrics.add(row)
        of_layers: dict[str, float] = {}
        for i, layer in zip(self.moe_layers, layers, strict=False):
            numbers = {name: float(getattr(layer, name)) for name in OF_LAYER}
            assigned = " ".join(map(str, layer.tokens_per_expert))
            self._experts.add({"step": row["step"], "layer": i, **numbers, "tokens_per_expert": assigned})
            of_layers |= {f"layer_{i}/{name}": value for name, value in numbers.items()}
        self._show(row)
        self._live.make_summary()  # not sync(): it reads all the history again each time
        if self._run is not None:
            shown = {k: float(v) for k, v in (row | of_layers).items() if k not in ("step", "tokens")}
            self._run.log(shown, tokens=int(row["tokens"]))

    def _show(self, row: dict[str, float]) -> None:
        self._live.step = int(row["step"])
        for name, value in row.items():
            if name != "step":
                self._live.log_metric(name, value)

    def column(self, name: str) -> list[tuple[int, int, float, float]]:
        """(step, tokens, seconds, value) of one column where it has any."""
        return [
            (int(row["step"]), int(row["tokens"]), float(row["seconds"]), float(row[name]))
            for row in self.rows
            if row[name] != ""
        ]

    def close(self) -> None:
        self._metrics.close()
        self._experts.close()
        self._live.end()


class _Table:
    """A CSV that grows row by row, and that forgets what lies beyond a step."""

    def __init__(self, path: Path, columns: tuple[str, ...], last_step: int) -> None:
        self._columns = columns
        self.rows = [row for row in _read(path, columns) if int(row["step"]) <= last_step]
        with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append({name: row.get(name, "") for name in self._columns})
        self._writer.writerow(self.rows[-1])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _read(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            # A kill may have cut the last line.
            if tuple(row) == columns and None not in row.values() and row["step"].isdigit():
                yield row


def plots_of(history: History, layers: list[list[int]], into: Path) -> None:
    """loss.csv, val_loss.csv and loss.png; experts.png: the share of the load of each expert in each MoE layer.

    One series a file: DVC draws an empty cell as a zero.
    """
    train, val = history.column("lm_loss"), history.column("val_loss")
    with written_whole(into) as partial, plotting.style():
        partial.mkdir()
        for name, column, rows in (("loss", "lm_loss", train), ("val_loss", "val_loss", val)):
            with (partial / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("step", "tokens", "seconds", column), *rows])
        points = {"train": train, "validation": val}
        series = {name: [(float(at), y) for _, at, _, y in rows] for name, rows in points.items() if rows}
        figure = plotting.loss_curve(series, 7, 4)
        figure.suptitle("Loss", fontsize=11)
        plotting.save(figure, partial / "loss.png")
        if layers:
            load = np.array(layers) / np.maximum(1, np.mean(layers, axis=1, keepdims=True))
            names, columns = [f"layer {i}" for i in history.moe_layers], [str(e) for e in range(load.shape[1])]
            figure = plotting.heat_map(load, names, columns, "expert", 7)
            figure.suptitle("Load of each expert at the end of training, over an even share", fontsize=11)
            plotting.save(figure, partial / "experts.png")
