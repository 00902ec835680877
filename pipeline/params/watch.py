"""Files of the user's that parameters name: none may lie where DVC deletes, and each must be watched for edits.

DVC empties a stage's outputs before the stage runs, and hashes the one file or folder that the section's `watch` names.
"""

import os
from pathlib import Path
from typing import Any

OUTPUTS = (
    *("data/raw", "data/clean", "data/tokenizer", "data/tokens", "data/instruct", "reports"),
    *("models/litgpt", "models/hf", "models/finetuned", "models/finetuned-hf", "models/adapter"),
)
_RUNS = "checkpoints"  # training deletes there
_FILES = {  # where a section names files: (key, key of what DVC watches; None: a folder that no stage may write)
    "download": ("path", "watch"),
    "clean": ("decontaminate", "watch"),
    "tokenizer": ("path", "watch"),
    "train": ("initial_checkpoint", None),
    "evaluate": ("lm_eval_tasks", "watch"),
    "instruct": ("path", "watch"),
}


def check(params: Any) -> None:
    """Raise ValueError (`SECTION.KEY: …`) for a file in an output, or one that the section does not watch.

    What is not there is left to its stage: a Hub id, or a mistake. Paths count from the project's folder; `~`, `..`,
    links and the case of letters are resolved as the system does.
    """
    for section, (key, watch_key) in _FILES.items():
        value = getattr(getattr(params, section), key, None)
        watch = getattr(getattr(params, section), watch_key) if watch_key else None
        if watch and is_glob(watch):
            raise ValueError(
                f"{section}.watch: {watch!r} is a glob, and DVC hashes a file or folder; set the folder of the files"
            )
        for path in [value] if isinstance(value, str) else value or []:
            place = fixed(path)
            if not place.exists():
                continue
            _refuse_outputs(f"{section}.{key}", path, place, (*OUTPUTS, _RUNS) if watch else OUTPUTS)
            if watch and not _inside(place, Path(watch)):
                whole = place if place.parent == Path() else place.parent
                raise ValueError(
                    f"{section}.watch: {watch} does not hold {path} ({section}.{key}), so an edit of it would not be "
                    f"noticed; compose anew (`moe compose`), or set what holds it, as in -S {section}.watch={whole}"
                )


def fixed(path: str) -> Path:
    """The file, the folder, or the folder in which a glob begins."""
    place = Path(os.path.expanduser(path))
    while is_glob(str(place)):
        place = place.parent
    return place


def is_glob(path: str) -> bool:
    return any(sign in path for sign in "*?[") and not os.path.exists(os.path.expanduser(path))


def _refuse_outputs(name: str, path: str, place: Path, outputs: tuple[str, ...]) -> None:
    for output in outputs:
        if _inside(place, Path(output)):
            raise ValueError(
                f"{name}: {path!r} lies in {output}, which the pipeline writes: DVC would delete it before it is "
                "read. Move it elsewhere, for example to data/own/"
            )
        if _inside(Path(output), place):
            raise ValueError(
                f"{name}: {path!r} holds {output}, which the pipeline writes; name a folder that holds your files "
                "alone, for example data/own/"
            )


def _inside(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or in it, as it is written or as links lead."""
    for resolved in (os.path.abspath, os.path.realpath):
        place, root = Path(resolved(path)), Path(resolved(folder))
        for above in (place, *place.parents):
            if above == root or (root.exists() and above.exists() and above.samefile(root)):
                return True
    return False
