"""Stage evaluate: models/litgpt on data/tokens → reports. Run as `python -m stages.evaluate` from the root."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pipeline.stage import CHECKPOINT, CLEAN, PLOTS, REPORTS, TOKENS, stage
from pipeline.tracking.artifacts import git_commit

app = typer.Typer(add_completion=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="Parameters of the run.")] = Path("params.yaml"),
) -> None:
    """Measure the trained model on the whole val set and beside baselines; write the report."""
    with stage("evaluate", params) as job:
        from pipeline.evaluate import evaluate, reports

        stages = reports.read(REPORTS)
        figures, details = evaluate.evaluate(job.params, CHECKPOINT, TOKENS, CLEAN, stages)
        of_run = {
            "model": job.params.export.name,
            "experiment": os.environ.get("DVC_EXP_NAME"),
            "commit": (git_commit() or "")[:12],
        }
        evaluate.present(details, stages, of_run, REPORTS)
        shown = ("prompt", "temperature", "text")
        job.run.log_table("samples", shown, [[story[k] for k in shown] for story in details["samples"]["stories"]])
        val = figures["val"]
        summary = f"val loss {val['loss']:.4f}, perplexity {val['perplexity']:.2f}"
        summary += f", {val['bits_per_byte']:.4f} bits per byte" if "bits_per_byte" in val else ""
        metrics = {name: val[name] for name in ("loss", "bits_per_byte", "accuracy") if name in val}
        metrics |= {name: value for name, value in figures.get("routing", {}).items() if name != "max_violation"}
        metrics["stories_that_end"] = figures["samples"]["ends"]
        metrics["val_text"] = details["val_set"]["text"][:8]  # rows of `dvc exp show` compare where it is the same
        job.finish(figures, wrote=[REPORTS / "report.html", PLOTS / "evaluate"], summary=summary, metrics=metrics)


if __name__ == "__main__":
    app()
