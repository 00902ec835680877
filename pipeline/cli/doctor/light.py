"""Checks that answer at once: they read the project's files, ask the system, and import no torch."""

import importlib.metadata
import importlib.util
import os
import platform
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import console
from pipeline.errors import UserError

if TYPE_CHECKING:
    from dvc.repo import Repo

_PACKAGES = ("torch", "lightning", "litgpt", "litdata", "transformers", "tokenizers", "daft", "dvc", "wandb")
_LEAST_FREE = 2e9  # bytes; the default run needs 1 GB, its cache the same again


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise UserError(f"Python {platform.python_version()}; 3.11 to 3.13 are supported: uv python install 3.13")
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _packages() -> str:
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: uv sync")
    return ", ".join(found)


def _device() -> str:
    version, cuda = _torch_build()
    if shutil.which("nvidia-smi"):
        wanted = ["--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader"]
        asked = subprocess.run(["nvidia-smi", *wanted], capture_output=True, text=True, timeout=10, check=False)
        if asked.returncode:
            said = (asked.stdout + asked.stderr).strip().splitlines()[:1]
            raise UserWarning(" ".join(["nvidia-smi finds no GPU; mend its driver, or train on the CPU.", *said]))
        cards = Counter(asked.stdout.strip().splitlines())
        words = "; ".join(f"{n} x {_card(*card.rsplit(', ', 2))}" for card, n in cards.items())
        if cuda is None:
            raise UserWarning(f"{words}, but torch {version} is a build without CUDA; install a CUDA build of it")
        return f"{words}; torch {version} for CUDA {cuda}"
    if (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        return "Apple GPU (mps)"
    return f"CPU, {os.cpu_count()} cores"


def _card(name: str, memory: str, capability: str) -> str:
    old = capability.partition(".")[0] in ("3", "5", "6", "7")
    return f"{name} ({memory}), {'no bfloat16: take train.precision=16-mixed' if old else 'bfloat16'}"


def _torch_build() -> tuple[str, str | None]:
    """The version of torch and of the CUDA that it was built for, read from its files: its import takes a second."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise UserError("torch is not installed: uv sync")
    build = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    return build["__version__"], build["cuda"]


def _disk() -> str:
    free = shutil.disk_usage(Path()).free
    if free < _LEAST_FREE:
        raise UserError(f"{console.size(free)} free; the default run and its cache need {console.size(_LEAST_FREE)}")
    return f"{console.size(free)} free"


def _git() -> str:
    if shutil.which("git") is None:
        raise UserWarning(
            "not installed; `dvc repro` works without (dvc config core.no_scm true), `dvc exp run` does not"
        )
    inside = subprocess.run(["git", "rev-parse", "--is-inside-work-tree"], capture_output=True, check=False)
    if inside.returncode:
        raise UserWarning(
            f"{Path.cwd()} is no repository; for `dvc exp run`: git init; for `dvc repro` alone: dvc config "
            "core.no_scm true"
        )
    return "a repository"


def _project() -> str:
    from pipeline import params

    if not Path("dvc.yaml").is_file():
        raise UserWarning(f"no dvc.yaml in {Path.cwd()}; run this in the project's folder to check the project too")
    params.load()
    return "params.yaml is valid"


def _configs() -> str:
    from pipeline.cli.compose import differences

    if not Path("configs/config.yaml").is_file():
        raise UserWarning("no configs/config.yaml here; `dvc exp run -S` needs it")
    if differing := differences():
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserWarning(
            f"params.yaml is not what configs/ compose: {'; '.join(differing[:3])}{more} (moe compose --check)"
        )
    return "params.yaml is what configs/ compose"


def _cache() -> str:
    """How DVC puts what is in its cache into the working folder: tried out, since that is the file system's choice."""
    from dvc.fs import generic

    with repository() as repo:
        cache = repo.cache.local
        folder = next(place for place in (Path(cache.path), *Path(cache.path).parents) if place.is_dir())
        beside = str(Path(repo.root_dir) / "dvc.yaml")  # DVC tries a link beside what it is given
        kinds = ["reflink", "hardlink", "symlink"]
        able = [*generic.test_links(kinds, cache.fs, str(folder), repo.fs, beside), "copy"]
        used = next((kind for kind in cache.cache_types if kind in able), None)
    if used is None:
        raise UserError(
            f"cache.type = {','.join(cache.cache_types)}, and between {cache.path} and here there are only "
            f"{', '.join(able)}: dvc config cache.type {','.join(able)}"
        )
    if used != "copy":
        return f"{used}s: what is in {cache.path} takes no room a second time"
    hint = ""
    if able[0] != "copy":
        hint = (
            f"; to save that room: dvc config --local cache.type {able[0]},copy && dvc checkout --relink dvc.yaml "
            "(outputs are then read-only)"
        )
    return f"copies: outputs take their room in {cache.path} and again here{hint}"


def _remote() -> str:
    from dvc.config import ConfigError
    from dvc.fs import get_cloud_fs

    with repository() as repo:
        config = repo.config
    name = config["core"].get("remote")
    if not name and config["remote"]:
        raise UserWarning(f"none is the default; choose one: dvc remote default {' or '.join(config['remote'])}")
    if not name:
        return "none: dvc push has nowhere to go (docs/sharing.md says how to share)"
    try:
        kind, _, path = get_cloud_fs(config, name=name)
    except ConfigError as error:
        raise UserError(f"{name}: {error}") from None
    except ImportError as error:
        raise UserError(f"{name}: {error} (for S3: uv sync --extra s3)") from None
    if kind.protocol != "local":
        return f"{name}, {config['remote'][name.lower()]['url']}"
    if not Path(path).exists():
        raise UserWarning(f"{name}, {path} is not there; mount it, or let the first dvc push make it")
    if not os.access(path, os.W_OK):
        raise UserWarning(f"{name}, {path}: you may not write there; dvc pull works, dvc push does not")
    return f"{name}, {path}"


@contextmanager
def repository() -> "Iterator[Repo]":
    """DVC's view of the project; UserWarning where there is none."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        repo = Repo()
    except (NotDvcRepoError, SCMError) as error:
        raise UserWarning(f"{error}; run this in the project's folder") from None
    with repo:
        yield repo


def _wandb() -> str:
    from pipeline.tracking import server

    mode, why = server.mode()
    return f"off ({why})" if mode == "off" else f"{mode}, project {os.environ['WANDB_PROJECT']}"


def _hub() -> str:
    from huggingface_hub import constants, get_token

    login = "logged in" if get_token() else "not logged in: public data sets and models only (hf auth login)"
    if constants.HF_HUB_OFFLINE:
        return f"{login}; offline (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set): only what is in its cache"
    return login


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("python", _python),
    ("packages", _packages),
    ("device", _device),
    ("disk", _disk),
    ("git", _git),
    ("project", _project),
    ("configs", _configs),
    ("DVC cache", _cache),
    ("DVC remote", _remote),
    ("W&B", _wandb),
    ("Hugging Face Hub", _hub),
)
