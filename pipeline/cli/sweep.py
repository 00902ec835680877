"""A set of experiments, queued and run by DVC: `moe sweep experts --seeds 3 --jobs 2`.

configs/sweep/NAME.yaml is a list; each entry is what follows `-S` of one `dvc exp run --queue`, a list of KEY=VALUE
where a value with commas is several runs.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import yaml
from dvc.utils.hydra import get_hydra_sweeps

from pipeline import console, params
from pipeline.cli.compose import compose
from pipeline.errors import UserError


def entries(name: str, overrides: list[str], seeds: int, configs: Path = Path("configs")) -> list[list[str]]:
    """What each `dvc exp run --queue` gets after -S. Raises UserError where the sweep or one of its runs is refused.

    overrides: for every run, also several values; seeds: how often each run is trained, from 1 on; 0: once, as it is.
    """
    path = configs / "sweep" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"{name!r} is no sweep; {path.parent}/ has: {known}")
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not (isinstance(read, list) and read and all(isinstance(entry, list) and _settings(entry) for entry in read)):
        raise UserError(
            f"{path}: allowed is a list of lists of KEY=VALUE; commas need quotes: "
            '- [model.router=sigmoid, "model.n_expert=2,4"]'
        )
    seeded = [f"train.seed={','.join(map(str, range(1, seeds + 1)))}"] if seeds else []
    found = [[*entry, *overrides, *seeded] for entry in read]
    for run in itertools.chain.from_iterable(runs(entry) for entry in found):
        with TemporaryDirectory(prefix="moe-sweep-") as place:
            composed = Path(place) / "params.yaml"
            try:
                compose(composed, configs, run)
                params.load(composed)
            except UserError as error:
                words = str(error).removeprefix(f"{composed}:").strip()
                raise UserError(f"{path}: the run {' '.join(run)}: {words}") from None
    return found


def runs(entry: list[str]) -> list[list[str]]:
    """One list of KEY=VALUE a run, as Hydra splits values with commas."""
    return [run["params.yaml"] for run in get_hydra_sweeps({"params.yaml": entry})]


def queue(entry: list[str]) -> None:
    """Let DVC queue the runs of an entry. Raises UserError, with what DVC says, where it refuses."""
    chosen = itertools.chain.from_iterable(("-S", override) for override in entry)
    _dvc("exp", "run", "--queue", *chosen)


def start(n_jobs: int) -> str:
    """Run what is queued, n_jobs at a time, in the background; return OMP_NUM_THREADS of each.

    The user's own OMP_NUM_THREADS wins: threads of two runs on one core wait for each other.
    """
    n_threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // n_jobs))
    _dvc("queue", "start", "-j", str(n_jobs), OMP_NUM_THREADS=n_threads)
    return n_threads


def _settings(entry: list[Any]) -> bool:
    return all(isinstance(item, str) and "=" in item for item in entry)


def _dvc(*command: str, **environment: str) -> None:
    """Run DVC and show what it says at its end: its workers keep what they write to, and a pipe would stay open."""
    with TemporaryFile("w+", encoding="utf-8") as said:
        program = [sys.executable, "-m", "dvc", *command]
        done = subprocess.run(program, env={**os.environ, **environment}, stdout=said, stderr=said, check=False)
        said.seek(0)
        words = said.read().strip()
    if done.returncode:
        raise UserError(f"`dvc {' '.join(command)}` failed:\n{words}")
    console.say(words)
