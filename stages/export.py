"""Stage export: models/litgpt → models/hf, for transformers. Run as `python -m stages.export` from the root."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.stage import CHECKPOINT, HUGGINGFACE, REPORTS, stage

app = typer.Typer(add_completion=False)


@app.command()
def main(params: Annotated[Path, typer.Option(help="Parameters of the run.")] = Path("params.yaml")) -> None:
    """Write the trained model for transformers (and llama.cpp), verified equal to what was trained."""
    with stage("export", params) as job:
        from pipeline.export import export, reports

        said = reports.read(REPORTS)
        report = export.export(job.params, said, CHECKPOINT, HUGGINGFACE)
        job.finish(report, wrote=[HUGGINGFACE], summary=export.in_words(report))
        console.say(f"talk to the model: uv run moe generate --prompt {shlex.quote(said.prompt(job.params))}")


if __name__ == "__main__":
    app()
