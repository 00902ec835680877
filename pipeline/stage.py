"""What all six stages share: validate first, report last, errors in words, W&B watching.

with stage("clean", params_file) as job:
    report = cleaning.clean(job.params.clean, RAW, CLEAN)
    job.finish(report, wrote=[CLEAN], summary="21,560 documents")
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from pipeline import console, params, tracking
from pipeline.errors import UserError
from pipeline.files import written_whole

RAW, CLEAN, TOKENIZER, TOKENS = Path("data/raw"), Path("data/clean"), Path("data/tokenizer"), Path("data/tokens")
CHECKPOINT, HUGGINGFACE, REPORTS = Path("models/litgpt"), Path("models/hf"), Path("reports")
PLOTS = REPORTS / "plots"  # one folder a stage
RUNS = Path("checkpoints")  # what training resumes from; not an output of DVC, so that a kill leaves it there


class Job:
    """One run of one stage."""

    def __init__(self, name: str, parameters: params.Params, run: tracking.Run) -> None:
        self.name, self.params, self.run = name, parameters, run
        self._begun = time.monotonic()

    def finish(self, report: dict[str, Any], wrote: list[Path], summary: str) -> None:
        """Write reports/NAME.json, print the stage's last line, mirror the outputs to W&B."""
        with written_whole(REPORTS / f"{self.name}.json") as partial:
            partial.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        took = console.duration(time.monotonic() - self._begun)
        places = ", ".join(f"{path} ({console.size(_bytes(path))})" for path in wrote)
        self.run.mirror()
        console.say(f"{self.name}: wrote {places}: {summary} in {took}")


@contextmanager
def stage(name: str, params_file: Path, resume_key: str | None = None) -> Iterator[Job]:
    """Validate all of params.yaml, then run the block; a UserError becomes its words and exit code 2."""
    try:
        parameters = params.load(params_file)
        with tracking.stage_run(name, parameters.model_dump(mode="json"), resume_key=resume_key) as run:
            yield Job(name, parameters, run)
    except UserError as error:
        console.fail(f"{name}: {error}")
        raise typer.Exit(2) from None


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
