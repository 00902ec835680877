"""Train the model on data/tokens into models/litgpt, going on where a stopped run of the same parameters was."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import console, params
from pipeline.errors import UserError
from pipeline.stage import CHECKPOINT, REPORTS, RUNS, TOKENIZER, TOKENS, stage
from pipeline.train.identity import rank, resume_key
from pipeline.train.interruption import Interrupted

app = typer.Typer(add_completion=False)


@app.command(help=__doc__)
def main(
    params_file: Annotated[Path, typer.Option(help="Parameters of the run.")] = Path("params.yaml"),
    resume: Annotated[
        str,
        typer.Option(
            envvar="MOE_RESUME",
            help="auto: from the same run's newest whole checkpoint; never: from the start; or a checkpoint's path.",
        ),
    ] = "auto",
) -> None:
    places: dict[str, Any] = {
        "runs": RUNS,
        "live": REPORTS / "live",
        "plots": REPORTS / "plots" / "train",
        "resume": resume,
    }
    if rank():  # another process of the same run: it computes, rank 0 reports
        from pipeline.train import loop

        try:
            loop.train(params.load(params_file), TOKENS, TOKENIZER, CHECKPOINT, **places)
        except Interrupted:  # no failure: rank 0 gives the exit code, if it is not killed for one of ours
            return
        except UserError as error:
            console.fail(f"train, rank {rank()}: {error}")
            raise typer.Exit(2) from None
        except Exception as error:
            console.fail(f"train, rank {rank()}: {error!r}")
            raise
        return
    key = resume_key(params_file, TOKENS, TOKENIZER) if resume == "auto" else None
    with stage("train", params_file, resume_key=key) as job:
        from pipeline.train import loop  # after the parameters were found to be good: it takes seconds

        try:
            report = loop.train(job.params, TOKENS, TOKENIZER, CHECKPOINT, run=job.run, **places)
        except Interrupted as interrupted:
            console.warn(f"train: {interrupted}")
            raise typer.Exit(interrupted.exit_code) from None
        loss = f"val loss {report['val_loss']:.3f} after {report['tokens']:,} tokens"
        speed = f"{report['tokens_per_second']:,.0f} tokens/s over {console.duration(report['seconds'])}"
        metrics = {name: report[name] for name in ("val_loss", "tokens", "tokens_per_second")}
        metrics |= {"parameters": report["parameters"]["total"], "active_parameters": report["parameters"]["active"]}
        job.finish(report, wrote=[CHECKPOINT], summary=f"{loss}, {speed}", metrics=metrics)


if __name__ == "__main__":
    app()
