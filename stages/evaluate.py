"""Stage evaluate: models/litgpt on data/tokens → reports. Run as `python -m stages.evaluate` from the root."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.stage import CHECKPOINT, CLEAN, TOKENS, stage

app = typer.Typer(add_completion=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="Parameters of the run.")] = Path("params.yaml"),
) -> None:
    """Measure the trained model on the whole val set and beside references; write the report."""
    with stage("evaluate", params) as job:
        from pipeline.evaluation.evaluate import evaluate

        figures, _ = evaluate(job.params, CHECKPOINT, TOKENS, CLEAN)
        val = figures["val"]
        summary = (
            f"val loss {val['loss']:.4f}, perplexity {val['perplexity']:.2f}, {val['bits_per_byte']:.4f} bits/byte"
        )
        job.finish(figures, wrote=[], summary=summary)


if __name__ == "__main__":
    app()
