"""Stage download: the corpus → data/raw. Run as `python -m stages.download` from the root."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.stage import RAW, stage

app = typer.Typer(add_completion=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="Parameters of the run.")] = Path("params.yaml"),
) -> None:
    """Fetch the documents that `download` in the parameters names, as Parquet shards with a manifest."""
    with stage("download", params) as job:
        from pipeline.download import sources

        if before := sources.chosen_otherwise(job.params.download):
            console.warn(
                f"another corpus than before ({before}). What -S chooses holds for one run; "
                "`uv run moe use download=…` chooses for all later ones"
            )
        report = sources.download(job.params.download, RAW)
        for why, documents in report["dropped"].items():
            console.warn(f"download: left out {documents:,} documents: {why}")
        job.finish(report, wrote=[RAW], summary=f"{report['documents']:,} documents")


if __name__ == "__main__":
    app()
