"""Stage clean: data/raw → data/clean/{train,val}. Run as `python -m stages.clean` from the root."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.stage import CLEAN, PLOTS, RAW, stage

app = typer.Typer(add_completion=False)


class Runner(StrEnum):
    native = "native"
    ray = "ray"


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="Parameters of the run.")] = Path("params.yaml"),
    runner: Annotated[
        Runner | None,
        typer.Option(help="native: this machine's cores; ray: a Ray cluster. Unset: ray when RAY_ADDRESS is set."),
    ] = None,
) -> None:
    """Repair, normalise, filter and deduplicate the documents, and split them into train and val."""
    with stage("clean", params) as job:
        from pipeline.clean import cleaning, statistics

        report = cleaning.clean(job.params.clean, RAW, CLEAN, PLOTS / "clean", runner)
        summary = statistics.summary(report)
        job.finish(report, wrote=[CLEAN], summary=summary, metrics={"documents": report["documents_out"]})


if __name__ == "__main__":
    app()
