"""configs/ composed into params.yaml, as `dvc exp run` does it: `moe compose`."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from dvc.utils.hydra import compose_and_dump
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from pipeline import params
from pipeline.errors import UserError
from pipeline.files import written_whole


def compose(output: Path, configs: Path = Path("configs"), overrides: list[str] | None = None) -> None:
    """Write the parameters that `configs` and the overrides give to `output`. Raises UserError where Hydra refuses."""
    folder = str(configs.resolve())
    try:
        with TemporaryDirectory(prefix="moe-compose-") as place:  # DVC asks for the suffix .yaml
            composed = Path(place) / "params.yaml"
            compose_and_dump(composed, folder, None, "config", folder, overrides or [])  # hydra_plugins/ are there
            with written_whole(output) as partial:
                shutil.copyfile(composed, partial)
    except OverrideParseException as error:
        raise UserError(
            f"{error}\na value with brackets or letters beyond ASCII needs quotes within quotes: 'KEY=\"VALUE\"'"
        ) from None
    except HydraException as error:
        raise UserError(str(error)) from None
    except OmegaConfBaseException as error:  # what configs/hydra_plugins refuses
        raise UserError(str(error).split("interpolation: ")[-1].split("\n    full_key")[0]) from None


def differences(
    written: Path = Path("params.yaml"), configs: Path = Path("configs"), overrides: list[str] | None = None
) -> list[str]:
    """Where a file of parameters is not what `configs` and the overrides compose: "KEY = VALUE, configs/ say VALUE".

    `dvc repro` takes params.yaml as it is; `dvc exp run` composes it anew and so drops these edits. Raises UserError.
    """
    with TemporaryDirectory(prefix="moe-compose-") as place:
        composed = Path(place) / "params.yaml"
        compose(composed, configs, overrides)
        ours, theirs = (dict(params.leaves(params.load(path))) for path in (written, composed))
    missing = "nothing"
    return [
        f"{key} = {ours.get(key, missing)!r}, configs/ say {theirs.get(key, missing)!r}"
        for key in ours | theirs
        if ours.get(key, missing) != theirs.get(key, missing)
    ]
