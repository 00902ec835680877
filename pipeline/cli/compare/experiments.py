"""What DVC knows of experiments: their parameters, figures and curves, out of Git and DVC's cache; no store of our own.

found = read(["tidal-hoof"])          # those named; none named: this folder, its commit and its experiments
for setting in settings(found): ...   # experiments that differ in the seed alone are one setting
"""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.flatten import flatten
from scmrepo.exceptions import SCMError

from pipeline.errors import UserError

HERE = "workspace"  # DVC's name of this folder
_METRICS = {"train": "reports/metrics/train.json", "evaluate": "reports/metrics/evaluate.json"}
_CURVE = "reports/plots/train/val_loss.csv"
# The seed, and what decides how a run is watched, named or measured, and nothing of what is learned or how fast.
_NO_DIFFERENCE = re.compile(r"train\.seed|export\.name|(evaluate|instruct|finetune)\..*|.*\.watch")


@dataclass(frozen=True)
class Point:
    """Of the curve of the loss on val samples while training."""

    tokens: int
    seconds: float  # nan in a curve of before they were written down
    loss: float


@dataclass(frozen=True)
class Experiment:
    name: str
    parameters: dict[str, Any]  # by dotted name
    figures: dict[str, float]  # bits_per_byte, val_loss, tokens_per_second, parameters, active_parameters, …
    curve: list[Point]  # empty where DVC's cache does not hold it


@dataclass
class Setting:
    """Experiments with the same parameters but for the seed."""

    differences: dict[str, Any]  # the parameters in which settings differ
    experiments: list[Experiment] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What is different in it; where nothing is, the experiments' names."""
        different = ", ".join(f"{key.split('.', 1)[-1]}={value}" for key, value in self.differences.items())
        return different or ", ".join(each.name for each in self.experiments)

    def figures(self, name: str) -> list[float]:
        return [each.figures[name] for each in self.experiments if name in each.figures]


def read(names: list[str]) -> list[Experiment]:
    """Raises UserError for a name that is no experiment, commit, branch or tag here, and where none was evaluated."""
    try:
        with Repo() as repo:
            known = {name: rev for of in repo.experiments.ls(rev="HEAD").values() for name, rev in of}
            every = {name: rev for of in repo.experiments.ls(all_commits=True).values() for name, rev in of}
            wanted: dict[str, str | None] = {HERE: None, "HEAD": "HEAD"} | dict(sorted(known.items()))
            if names:
                wanted = {name: None if name == HERE else every.get(name, name) for name in names}
            for name, rev in wanted.items():
                _refuse_unknown(repo, name, rev, [*known])
        found = [_experiment(name, DVCFileSystem(rev=rev)) for name, rev in wanted.items()]
    except (DvcException, SCMError) as error:
        raise UserError(f"DVC cannot read the experiments here: {error}") from None
    if missing := [name for name, each in zip(wanted, found, strict=True) if each is None and name in names]:
        raise UserError(f"{', '.join(missing)}: not evaluated yet, there is no {_METRICS['evaluate']}")
    experiments = [each for each in found if each is not None]
    if not names and experiments and any(_same(experiments[0], other) for other in experiments[1:]):
        del experiments[0]  # this folder holds what another one is
    if not experiments:
        raise UserError("nothing to compare: no run of this commit was evaluated; start some with: moe sweep NAME")
    return experiments


def settings(experiments: list[Experiment]) -> list[Setting]:
    """Best first, by the mean of their bits per byte, else of their validation loss."""
    keys = dict.fromkeys(key for each in experiments for key in each.parameters if not _NO_DIFFERENCE.fullmatch(key))
    varied = [key for key in keys if len({repr(each.parameters.get(key)) for each in experiments}) > 1]
    found: dict[str, Setting] = {}
    for each in experiments:
        differences = {key: each.parameters.get(key) for key in varied}
        found.setdefault(repr(differences), Setting(differences)).experiments.append(each)

    def order(setting: Setting) -> float:
        values = setting.figures("bits_per_byte") or setting.figures("loss")
        return sum(values) / len(values) if values else float("inf")

    return sorted(found.values(), key=order)


def _same(one: Experiment, other: Experiment) -> bool:
    return (one.parameters, one.figures) == (other.parameters, other.figures)


def _refuse_unknown(repo: Repo, name: str, rev: str | None, known: list[str]) -> None:
    try:
        if rev is not None:
            repo.scm.resolve_rev(rev)
    except SCMError:
        names = ", ".join(known) or "none of this commit"
        raise UserError(f"{name!r} is no experiment, commit, branch or tag here; experiments: {names}") from None


def _experiment(name: str, files: DVCFileSystem) -> Experiment | None:
    """None where it was not evaluated."""
    figures: dict[str, float] = {}
    for path in _METRICS.values():
        if (text := _text(files, path)) is not None:
            figures |= {k: v for k, v in _parsed(json.loads, name, path, text).items() if isinstance(v, int | float)}
    if "loss" not in figures:
        return None
    parameters = flatten(_parsed(yaml.safe_load, name, "params.yaml", _text(files, "params.yaml") or "{}"))
    curve = csv.DictReader(io.StringIO(_text(files, _CURVE) or ""))
    points = [Point(int(row["tokens"]), float(row.get("seconds", "nan")), float(row["val_loss"])) for row in curve]
    return Experiment(name, parameters, figures, points)


def _parsed(parse: Callable[[str], Any], name: str, path: str, text: str) -> dict[str, Any]:
    try:
        found = parse(text)
        if isinstance(found, dict):
            return found
    except (ValueError, yaml.YAMLError):
        pass
    raise UserError(f"{name}: {path} is damaged; leave it out, or run it again")


def _text(files: DVCFileSystem, path: str) -> str | None:
    """None for what is neither in Git nor in DVC's cache."""
    try:
        return str(files.read_text(path, encoding="utf-8"))
    except (OSError, DvcException):
        return None
