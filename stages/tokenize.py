"""Stage tokenize: data/clean → data/tokenizer, data/tokens. Run as `python -m stages.tokenize` from the root."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.files import written_whole
from pipeline.stage import CLEAN, PLOTS, TOKENIZER, TOKENS, stage

app = typer.Typer(add_completion=False)


@app.command()
def main(
    params: Annotated[Path, typer.Option(help="Parameters of the run.")] = Path("params.yaml"),
) -> None:
    """Build the tokenizer and write train and val as tokens."""
    with stage("tokenize", params) as job:
        from pipeline.tokenize import tokenizer
        from pipeline.tokenize import writer as tokens

        with written_whole(TOKENIZER) as vocabulary, written_whole(TOKENS) as written:
            report = {"tokenizer": tokenizer.build(job.params.tokenizer, CLEAN, vocabulary)}
            report |= tokens.write(job.params.tokenizer, vocabulary, CLEAN, written, PLOTS / "tokenize")
        summary = f"{report['train']['tokens']:,} tokens to train on, {report['val']['tokens']:,} for validation"
        metrics = {"bytes_per_token": report["train"]["bytes_per_token"]}
        job.finish(report, wrote=[TOKENIZER, TOKENS], summary=summary, metrics=metrics)


if __name__ == "__main__":
    app()
