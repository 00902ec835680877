"""Stage export of finetune/dvc.yaml: models/finetuned → models/finetuned-hf, for transformers and llama.cpp."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.stage import FINETUNED, FINETUNED_HUGGINGFACE, INSTRUCT, REPORTS, stage

app = typer.Typer(add_completion=False)


@app.command()
def main(params: Annotated[Path, typer.Option(help="Parameters of the run.")] = Path("params.yaml")) -> None:
    """Write the finetuned model, an adapter added to its weights, verified equal to what was trained."""
    with stage("finetune/export", params) as job:
        from pipeline.export import export, reports

        with (INSTRUCT / "val.jsonl").open(encoding="utf-8") as file:
            turns: list[dict[str, str]] = next(
                (talk["messages"] for talk in map(json.loads, file) if talk["messages"]), []
            )
            instruction = next((turn["content"] for turn in turns if turn["role"] == "user"), "Hello!")
        said = reports.of_data(REPORTS)  # figures and samples are those of the pretrained model
        report = export.export(job.params, said, FINETUNED, FINETUNED_HUGGINGFACE, instruction)
        job.finish(report, wrote=[FINETUNED_HUGGINGFACE], summary=export.in_words(report))


if __name__ == "__main__":
    app()
