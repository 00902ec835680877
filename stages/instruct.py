"""Stage instruct of finetune/dvc.yaml: conversations → data/instruct. Run as `python -m stages.instruct`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.stage import INSTRUCT, stage

app = typer.Typer(add_completion=False)


@app.command()
def main(params: Annotated[Path, typer.Option(help="Parameters of the run.")] = Path("params.yaml")) -> None:
    """Put the conversations that `instruct` in the parameters names into the chat template, tokenized in blocks."""
    with stage("finetune/instruct", params) as job:
        from pipeline.instruct import instruct

        report = instruct.instruct(job.params.instruct, Path(job.params.finetune.checkpoint), INSTRUCT)
        for why, count in report["dropped"].items():
            console.warn(f"instruct: left out {count:,} conversations: {why}")
        for why, count in report["cut"].items():
            console.warn(f"instruct: cut {count:,} turns: {why}")
        train, val = report["train"], report["val"]
        texts = f" and {train['texts']:,} texts" if train["texts"] else ""
        summary = f"{train['conversations']:,} conversations{texts} in {train['blocks']:,} blocks, "
        summary += f"{train['filled']:.0%} filled"
        summary += f"; {val['conversations']:,} held out"
        metrics = {"conversations": train["conversations"], "trained_tokens": train["trained_tokens"]}
        job.finish(report, wrote=[INSTRUCT], summary=summary, metrics=metrics)


if __name__ == "__main__":
    app()
