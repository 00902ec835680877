"""Stage evaluate: models/litgpt on data/tokens → reports. Run as `python -m stages.evaluate` from the root."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.stage import CHECKPOINT, CLEAN, PLOTS, REPORTS, TOKENS, stage

app = typer.Typer(add_completion=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="Parameters of the run.")] = Path("params.yaml"),
) -> None:
    """Measure the trained model on the whole val set and beside baselines; write the report."""
    with stage("evaluate", params) as job:
        from pipeline.evaluate import evaluate, report

        stages = report.read_stages(REPORTS)
        entropy = stages["download"].get("entropy_bits_per_byte")
        figures, details = evaluate.evaluate(job.params, CHECKPOINT, TOKENS, CLEAN, entropy)
        evaluate.present(details, stages, REPORTS)
        shown = ("prompt", "temperature", "text")
        job.run.log_table("samples", shown, [[story[k] for k in shown] for story in details["samples"]["stories"]])
        val = figures["val"]
        summary = f"val loss {val['loss']:.4f}, perplexity {val['perplexity']:.2f}, "
        summary += f"{val['bits_per_byte']:.4f} bits per byte"
        metrics = {name: val[name] for name in ("loss", "perplexity", "bits_per_byte", "accuracy")}
        metrics |= {name: value for name, value in figures.get("routing", {}).items() if name != "max_violation"}
        metrics["stories_that_end"] = figures["samples"]["ends"]
        job.finish(figures, wrote=[REPORTS / "report.html", PLOTS / "evaluate"], summary=summary, metrics=metrics)


if __name__ == "__main__":
    app()
