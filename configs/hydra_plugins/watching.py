"""What `configs/` may say besides Hydra's own: ${watched:PATHS,OTHERWISE}. Hydra imports this before it composes."""

import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

PROJECT = Path(__file__).parents[2]


def watched(paths: str | float | Sequence[str | float] | None, otherwise: str) -> str:
    """The one file or folder that DVC should hash to notice an edit of `paths`.

    DVC expands no globs, so a glob is watched through the folder that it begins in, several paths through the folder
    that holds them all. `otherwise` where nothing of it is there: a Hub id, or a mistake that the stage names. A name
    like 2024 arrives as a number.
    """
    listed = [paths] if isinstance(paths, str | int | float) else paths or []
    fixed = [_fixed(os.path.expanduser(str(path))) for path in listed]
    here = [path for path in fixed if (PROJECT / path).exists()]
    if not here:
        return otherwise
    if any(os.path.isabs(path) for path in here):
        here = [str(PROJECT / path) for path in here]
    for path in here:
        _refuse_what_dvc_cannot_hash(path)
    common = os.path.commonpath(here)
    if not common or PROJECT.is_relative_to(common):
        raise ValueError(f"{', '.join(here)}: DVC must watch them; put them into one folder below the project's")
    return common


def _refuse_what_dvc_cannot_hash(path: str) -> None:
    for folder, _, names in os.walk(PROJECT / path):
        for name in names:
            if not name.isascii() and name != os.fsencode(name).decode(errors="ignore"):
                raise ValueError(
                    f"{folder}: the name {os.fsencode(name)!r} is not UTF-8, and DVC needs that; rename it"
                )
            if not os.path.exists(os.path.join(folder, name)):
                raise ValueError(f"{os.path.join(folder, name)} is a link to nothing, which DVC cannot hash; remove it")


def _fixed(path: str) -> str:
    if (PROJECT / path).exists() or not any(sign in path for sign in "*?["):
        return path
    parts = Path(path).parts
    wild = next(n for n, part in enumerate(parts) if any(sign in part for sign in "*?["))
    if not wild:
        raise ValueError(f"{path}: DVC must watch the folder of a glob, so name one, as in data/own/{path}")
    return str(Path(*parts[:wild]))


OmegaConf.register_new_resolver("watched", watched, replace=True)
