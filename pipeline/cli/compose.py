"""Compose configs/ into params.yaml, as `dvc exp run` does: `moe compose`."""

from pathlib import Path

from dvc.utils.hydra import compose_and_dump
from hydra.errors import HydraException

from pipeline.errors import UserError


def compose(output: Path, configs: Path = Path("configs"), overrides: list[str] | None = None) -> None:
    """Write the parameters that `configs` and the overrides give to `output`. Raises UserError where Hydra refuses."""
    folder = str(configs.resolve())
    try:
        compose_and_dump(output, folder, None, "config", folder, overrides or [])  # its hydra_plugins/ are found there
    except HydraException as error:
        raise UserError(str(error)) from None
