"""Train the model on data/tokens into models/litgpt, going on where a stopped run of the same parameters was."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline import console
from pipeline import params as parameters
from pipeline.errors import UserError
from pipeline.stage import CHECKPOINT, PLOTS, REPORTS, RUNS, TOKENIZER, TOKENS, other_rank, stage
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
    places: dict[str, Any] = {"runs": RUNS, "live": REPORTS / "live", "plots": PLOTS / "train", "resume": resume}
    if rank():  # another process of the same run
        with other_rank("train"):
            loaded = parameters.load(params)
            from pipeline.train import loop

            loop.train(loaded, TOKENS, TOKENIZER, CHECKPOINT, **places)
        return
    key = _fingerprint(params) if resume == "auto" else None
    with stage("train", params, resume_key=key) as job:
        from pipeline.huggingface.verify import (
            verify_exportable,
        )  # imports take seconds, and the parameters are good now
        from pipeline.train import loop

        def exportable(vocab_size: int) -> None:
            console.say(f"train: {verify_exportable(job.params.model, vocab_size)}")

        places |= {"run": job.run, "before": exportable, "check": job.inputs.refuse_changes}
        try:
            report = loop.train(job.params, TOKENS, TOKENIZER, CHECKPOINT, **places)
        except Interrupted as interrupted:
            console.warn(f"train: {interrupted}")
            raise typer.Exit(interrupted.exit_code) from None
        loss = f"val loss {report['val_loss']:.3f} after {report['tokens']:,} tokens"
        speed = f"{report['tokens_per_second']:,.0f} tokens/s"
        if report["resumed_from"]:
            speed += f" ({console.duration(report['seconds'])} of training in all sessions); this one"
        metrics = {name: report[name] for name in ("val_loss", "tokens", "tokens_per_second")}
        metrics |= {"parameters": report["parameters"]["total"], "active_parameters": report["parameters"]["active"]}
        report["finished"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        job.finish(report, wrote=[CHECKPOINT], summary=f"{loss}, {speed}", metrics=metrics)


def _fingerprint(params: Path) -> str | None:
    """By which W&B goes on with a run's curves; None where the stage cannot run (it then says why)."""
    try:
        loaded = parameters.load(params)
        from pipeline.train import resume

        return resume.fingerprint(resume.identity(loaded, TOKENS, TOKENIZER))
    except (UserError, OSError):
        return None


if __name__ == "__main__":
    app()
