"""Stage evaluate of finetune/dvc.yaml: the model before and after. Run as `python -m stages.evaluate_finetuned`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.stage import CLEAN, FINETUNED, INSTRUCT, PLOTS, TOKENS, stage

app = typer.Typer(add_completion=False)


@app.command()
def main(params: Annotated[Path, typer.Option(help="Parameters of the run.")] = Path("params.yaml")) -> None:
    """Compare the model before and after finetuning on held-out conversations, and on the text of pretraining."""
    with stage("finetune/evaluate", params) as job:
        from pipeline.finetuned import evaluation

        models = {"before": Path(job.params.finetune.checkpoint), "after": FINETUNED}
        figures, shown = evaluation.evaluate(job.params, models, INSTRUCT, TOKENS, CLEAN)
        evaluation.draw(figures, PLOTS / "finetuned")
        before, after = figures["before"], figures["after"]
        ratio = after["val"]["bits_per_byte"] / before["val"]["bits_per_byte"]
        summary = f"loss on answers {before['answers']['loss']:.3f} → {after['answers']['loss']:.3f}"
        metrics = {"answer_loss": after["answers"]["loss"], "bits_per_byte": after["val"]["bits_per_byte"]}
        if "constraints_met" in after["answers"]:
            met = [each["answers"]["constraints_met"] for each in (before, after)]
            summary += f", constraints met {met[0]:.1%} → {met[1]:.1%}"
            metrics |= {"constraints_met": met[1], "constraints_met_before": met[0]}
        summary += f", bits per byte on val × {ratio:.3f}"
        job.finish({**figures, "shown": shown}, wrote=[PLOTS / "finetuned"], summary=summary, metrics=metrics)


if __name__ == "__main__":
    app()
