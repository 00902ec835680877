"""Stage export: models/litgpt → models/hf, for transformers. Run as `python -m stages.export` from the root."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.files import written_whole
from pipeline.stage import CHECKPOINT, HUGGINGFACE, REPORTS, stage

app = typer.Typer(add_completion=False)


@app.command()
def main(params: Annotated[Path, typer.Option(help="Parameters of the run.")] = Path("params.yaml")) -> None:
    """Write the trained model for transformers (and llama.cpp), verified equal to what was trained."""
    with stage("export", params) as job:
        from pipeline.export import card, gguf, reports
        from pipeline.huggingface import folder as huggingface
        from pipeline.huggingface.verify import apart
        from pipeline.model import checkpoint_folder

        export = job.params.export
        said = reports.read(REPORTS)
        model = checkpoint_folder.load(CHECKPOINT)
        with written_whole(HUGGINGFACE) as folder:
            report = huggingface.to_huggingface(model, CHECKPOINT, folder, export.dtype, export.max_shard_bytes)
            for kind in export.gguf:
                gguf.write(
                    model, CHECKPOINT, folder / f"{export.name}-{kind}.gguf", kind, card.about(job.params, said, report)
                )
            card.write(job.params, said, folder, report)
        parity = apart(report["max_logit_difference"])
        parity += f", {report['greedy_tokens_equal']} of {report['greedy_tokens']} greedy tokens equal"
        job.finish(report, wrote=[HUGGINGFACE], summary=f"{report['class']} in {export.dtype}, {parity}")
        console.say(f"talk to the model: uv run moe generate --prompt {shlex.quote(said.prompt(job.params))}")


if __name__ == "__main__":
    app()
