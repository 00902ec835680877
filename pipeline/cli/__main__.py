"""`python -m pipeline.cli`: the `moe` command."""

from pipeline.cli.app import app

app()
