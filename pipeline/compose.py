"""Compose configs/ into params.yaml, as `dvc exp run` does: `python -m pipeline.compose [GROUP=NAME KEY=VALUE …]`."""

import sys
from pathlib import Path

from dvc.utils.hydra import compose_and_dump
from hydra.errors import HydraException

from pipeline import console


def compose(output: Path, configs: Path = Path("configs"), overrides: list[str] | None = None) -> None:
    """Write the parameters that `configs` and the overrides give to `output`."""
    folder = str(configs.resolve())
    compose_and_dump(output, folder, None, "config", folder, overrides or [])  # its hydra_plugins/ are found there


if __name__ == "__main__":
    try:
        compose(Path("params.yaml"), overrides=sys.argv[1:])
    except HydraException as error:
        console.fail(str(error))
        sys.exit(2)
