"""What the stages before reported: figures from reports/*.json, the loss while training from reports/plots/train.

reports = read(Path("reports"))                     # {"download": {…}, "clean": {…}, "tokenize": {…}, "train": {…}}
at(reports, "train", "parameters", "total")         # None where there is no such figure
"""

import csv
import json
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluate.plots import Curve


def at(report: Any, *keys: str) -> Any:
    """A value inside nested objects; None where it is not there."""
    for key in keys:
        report = report.get(key) if isinstance(report, dict) else None
    return report


def read(reports: Path) -> dict[str, dict[str, Any]]:
    """What download, clean, tokenize and train reported; {} for a stage whose report is not there.

    Raises UserError for a report that is damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in ("download", "clean", "tokenize", "train"):
        path = reports / f"{name}.json"
        try:
            found[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); run: dvc repro -f {name}") from None
        if not isinstance(found[name], dict):
            raise UserError(f"{path} holds no JSON object; run: dvc repro -f {name}")
    return found


def read_curve(folder: Path) -> Curve:
    """The points (tokens, loss) of the training run's CSVs: what reports/plots/train holds, in a fixed order."""
    found: Curve = {}
    for name, file, column in (("train", "loss.csv", "lm_loss"), ("validation", "val_loss.csv", "val_loss")):
        path = folder / file
        if not path.is_file():
            continue
        try:
            with path.open(newline="", encoding="utf-8") as opened:
                rows = [row for row in csv.DictReader(opened) if row[column]]
            points = [(float(row["tokens"]), float(row[column])) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error!r}); run: dvc repro -f train") from None
        if points:
            found[name] = points
    return found
