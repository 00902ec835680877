"""The `moe` command: what people call by hand. Each command validates, calls the library, and speaks plainly."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline import console
from pipeline.errors import UserError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="A small Mixture-of-Experts language model, by hand."
)
PARAMS = typer.Option("--params", help="Parameters to read.")


@contextmanager
def told() -> Iterator[None]:
    """A UserError becomes its words and exit code 2."""
    try:
        yield
    except UserError as error:
        console.fail(str(error))
        raise typer.Exit(2) from None


@app.command()
def mirror(
    stage: Annotated[str | None, typer.Option(help="Only this stage's outputs.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded.")] = False,
) -> None:
    """Bring what dvc.lock says to W&B: missing versions, aliases, lineage. Recomputes nothing."""
    with told():
        from pipeline import tracking

        tracking.mirror(stage, dry_run)


@app.command()
def fetch(artifact: Annotated[str, typer.Argument(help="[entity/project/]name:alias, e.g. model:best")]) -> None:
    """Put a W&B artifact in place as its stage's output, so that `dvc repro` goes on from there."""
    with told():
        from pipeline import tracking

        tracking.fetch(artifact)


@app.command()
def lint() -> None:
    """Hold dvc.yaml and params.yaml against the code: what is declared is what is imported and read."""
    from pipeline.lint import problems

    found = problems()
    for problem in found:
        console.fail(problem)
    if found:
        raise typer.Exit(1)
    console.say("dvc.yaml declares what the code imports and reads")


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Leave out torch.compile, which takes half a minute.")] = False,
) -> None:
    """Check this machine: packages, device, attention, the expert layer, torch.compile."""
    from pipeline import doctor as checks

    if not checks.report(checks.examine(compile_too=not quick)):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
