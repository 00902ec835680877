"""What all six stages share: validate first, report last, failures in words, W&B watching.

with stage("clean", params_file) as job:
    report = cleaning.clean(job.params.clean, RAW, CLEAN)
    job.finish(report, wrote=[CLEAN], summary="21,560 documents", metrics={"documents": 21560})
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
import yaml

from pipeline import console, hashing, params, tracking
from pipeline.errors import UserError, refusal
from pipeline.files import written_whole

RAW, CLEAN, TOKENIZER, TOKENS = Path("data/raw"), Path("data/clean"), Path("data/tokenizer"), Path("data/tokens")
CHECKPOINT, HUGGINGFACE, REPORTS = Path("models/litgpt"), Path("models/hf"), Path("reports")
PLOTS = REPORTS / "plots"  # one folder a stage
METRICS = REPORTS / "metrics"  # the few numbers that `dvc metrics` and `dvc exp show` list, one file a stage
INSTRUCT, FINETUNED, ADAPTER = Path("data/instruct"), Path("models/finetuned"), Path("models/adapter")
FINETUNED_HUGGINGFACE = Path("models/finetuned-hf")
RUNS = Path("checkpoints")  # what training resumes from; not an output of DVC, so that a kill leaves it there


class Job:
    """One run of one stage."""

    def __init__(self, name: str, parameters: params.Params, run: tracking.Run, inputs: "Inputs") -> None:
        self.name, self.params, self.run, self.inputs = name, parameters, run, inputs
        self._begun = time.monotonic()

    def finish(
        self, report: dict[str, Any], wrote: list[Path], summary: str, metrics: dict[str, Any] | None = None
    ) -> None:
        """Write reports/NAME.json (all figures) and reports/metrics/NAME.json (the few that people compare).

        Prints the stage's last line and mirrors the outputs to W&B. Raises UserError where an input has changed.
        """
        self.inputs.refuse_changes()
        _write_json(REPORTS / f"{self.name}.json", report)
        if metrics is not None:
            _write_json(METRICS / f"{self.name}.json", metrics)
            self.run.summarize(metrics)
        took = console.duration(time.monotonic() - self._begun)
        places = ", ".join(f"{path} ({console.size(_bytes(path))})" for path in wrote)
        self.run.mirror()
        console.say(f"{self.name}: wrote {places}: {summary} in {took}")


class Inputs:
    """What a stage depends on, as dvc.yaml lists it: sections of params.yaml, code, data; as it was at the start.

    DVC records what its dependencies are when the stage ends. What was edited meanwhile, perhaps for the next
    experiment, would be recorded as what the stage used.
    """

    def __init__(self, name: str, params_file: Path) -> None:
        self._params_file = params_file
        folder, _, name = name.rpartition("/")
        pipeline = Path(folder, "dvc.yaml")
        stages = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"] if pipeline.is_file() else {}
        self._declared = stages.get(name, {"params": list(params.Params.model_fields)})
        self._begin = self._now()

    def changed(self) -> list[str]:
        """The parameters and files that are not what they were when the stage began."""
        now = self._now()
        return [name for name in self._begin | now if self._begin.get(name) != now.get(name)]

    def refuse_changes(self) -> None:
        """Raise UserError where an input has changed: DVC then records nothing."""
        if changed := self.changed():
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            raise UserError(
                f"{', '.join(changed[:5])}{more} changed while the stage ran, so DVC would record what the stage did "
                "not use; nothing is recorded. Run the command again (training goes on from its checkpoint if you "
                "undo the change first)"
            )

    def _now(self) -> dict[str, Any]:
        """Each parameter's value, a hash of each file of code, size and time of each other file."""
        try:
            raw = params.read(self._params_file)
        except UserError:
            return {str(self._params_file): None}  # being edited; the values differ from those at the start
        declared = tuple(f"{key}." for key in self._declared["params"])  # a section, or one value such as export.name
        found = {f"params.yaml:{key}": value for key, value in _leaves(raw) if f"{key}.".startswith(declared)}
        for dependency in self._declared.get("deps", []):
            path = Path(params.filled(dependency, raw))
            for file in [path] if path.is_file() else hashing.files_below(path) if path.is_dir() else []:
                if path.parts[0] not in ("pipeline", "stages"):
                    found[file.as_posix()] = (file.stat().st_size, file.stat().st_mtime_ns)
                elif file.suffix in (".py", ".jinja"):
                    found[file.as_posix()] = hashing.file_sha256(file)
        return found


@contextmanager
def stage(name: str, params_file: Path, resume_key: str | None = None) -> Iterator[Job]:
    """Validate all of params.yaml, then run the block; a UserError becomes its words and exit code 2.

    `name`: of the stage in dvc.yaml; finetune/export is the stage export of finetune/dvc.yaml.
    """
    try:
        parameters = params.load(params_file)
        inputs = Inputs(name, params_file)
        with tracking.stage_run(name, parameters.model_dump(mode="json"), resume_key=resume_key) as run:
            yield Job(name, parameters, run, inputs)
        inputs.refuse_changes()  # once more: uploads may have taken long
    except UserError as error:
        console.fail(f"{name}: {error}")
        raise typer.Exit(2) from None
    except Exception as error:
        if (words := refusal(error)) is None:
            raise
        console.fail(f"{name}: {words}")
        raise typer.Exit(2) from None


@contextmanager
def other_rank(name: str) -> Iterator[None]:
    """What a process does in a training that rank 0 reports: it computes, and says why where it fails."""
    from pipeline.train.process import Interrupted, rank

    try:
        yield
    except Interrupted:  # no failure: rank 0 gives the exit code, if it is not killed for one of ours
        return
    except UserError as error:
        console.fail(f"{name}, rank {rank()}: {error}")
        raise typer.Exit(2) from None
    except Exception as error:
        console.fail(f"{name}, rank {rank()}: {error!r}")
        raise


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
