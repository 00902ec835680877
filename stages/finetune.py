"""Train the pretrained model on data/instruct into models/finetuned, going on where a stopped run of it was."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import console
from pipeline import params as parameters
from pipeline.errors import UserError
from pipeline.stage import ADAPTER, FINETUNED, INSTRUCT, PLOTS, REPORTS, RUNS, other_rank, stage
from pipeline.train.process import Interrupted, rank

app = typer.Typer(add_completion=False)


@app.command(help=__doc__)
def main(
    params: Annotated[Path, typer.Option(help="Parameters of the run.")] = Path("params.yaml"),
    resume: Annotated[
        str,
        typer.Option(
            envvar="MOE_RESUME",
            help="auto: from the same run's newest whole checkpoint; never: from the start; or a checkpoint's path.",
        ),
    ] = "auto",
) -> None:
    places: dict[str, Any] = {
        "data": INSTRUCT, "into": FINETUNED, "adapter": ADAPTER, "runs": RUNS / "finetune",
        "live": REPORTS / "live" / "finetune", "plots": PLOTS / "finetune", "resume": resume,
    }  # fmt: skip
    if rank():  # another process of the same run
        with other_rank("finetune"):
            loaded = parameters.load(params)
            from pipeline.finetune import finetune

            finetune.finetune(loaded, **places)
        return
    key = _fingerprint(params) if resume == "auto" else None
    with stage("finetune/finetune", params, resume_key=key) as job:
        from pipeline.finetune import finetune

        try:
            report = finetune.finetune(job.params, **places, run=job.run, check=job.inputs.refuse_changes)
        except Interrupted as interrupted:
            console.warn(f"finetune: {interrupted}")
            raise typer.Exit(interrupted.exit_code) from None
        summary = f"val loss {report['val_loss']:.3f} after {report['epochs']:.2f} epochs, "
        summary += f"{report['trained_parameters']:,} parameters trained ({report['trained_share']:.1%})"
        metrics = {name: report[name] for name in ("val_loss", "trained_parameters", "tokens_per_second")}
        job.finish(report, wrote=[FINETUNED, ADAPTER], summary=summary, metrics=metrics)


def _fingerprint(params: Path) -> str | None:
    """By which W&B goes on with a run's curves; None where the stage cannot run (it then says why)."""
    try:
        from pipeline.finetune import finetune

        return finetune.fingerprint(parameters.load(params), INSTRUCT, ADAPTER)
    except (UserError, OSError):
        return None


if __name__ == "__main__":
    app()
