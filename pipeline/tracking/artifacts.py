"""Which output of which stage is which W&B artifact, and how one goes there.

A version is one content: the server makes no second one for the same files. It is called by the first characters of
its content hash (hashing.content_hash), so that anyone who has the files can ask whether W&B has them, and how.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from pipeline import hashing, params
from pipeline.tracking.server import WandbError, redacted

_ALIAS = 12  # characters of the content hash that a version is called by
_BYTES_PER_SECOND = 200_000  # the slowest upload that is waited for
_LARGEST_MANIFEST = 50_000  # bytes of a manifest.json that is copied to the metadata


@dataclass(frozen=True)
class Artifact:
    """One row of the table: the outputs of `stage` at or below `path`, relative to the project's root.

    A stage of another pipeline than dvc.yaml is named with its folder: finetune/export.
    """

    name: str
    type: str
    stage: str
    path: str


ARTIFACTS = (
    Artifact("raw", "dataset", "download", "data/raw"),
    Artifact("report-download", "report", "download", "reports"),
    Artifact("clean", "dataset", "clean", "data/clean"),
    Artifact("report-clean", "report", "clean", "reports"),
    Artifact("tokenizer", "dataset", "tokenize", "data/tokenizer"),
    Artifact("tokens", "dataset", "tokenize", "data/tokens"),
    Artifact("report-tokenize", "report", "tokenize", "reports"),
    Artifact("model", "model", "train", "models/litgpt"),
    Artifact("report-train", "report", "train", "reports"),
    Artifact("report", "report", "evaluate", "reports"),
    Artifact("model-hf", "model", "export", "models/hf"),
    Artifact("report-export", "report", "export", "reports"),
    Artifact("conversations", "dataset", "finetune/instruct", "data/instruct"),
    Artifact("model-finetuned", "model", "finetune/finetune", "models/finetuned"),
    Artifact("adapter", "model", "finetune/finetune", "models/adapter"),
    Artifact("report-finetuned", "report", "finetune/evaluate", "reports"),
    Artifact("model-finetuned-hf", "model", "finetune/export", "models/finetuned-hf"),
)


@dataclass(frozen=True)
class Content:
    """What is on disk for an artifact: files by their name in it, DVC's MD5 of each output, one hash of all."""

    artifact: Artifact
    files: dict[str, Path]
    md5: dict[str, str]
    hash: str

    @property
    def alias(self) -> str:
        return self.hash[:_ALIAS]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files.values())


def named(name: str) -> Artifact:
    return next(artifact for artifact in ARTIFACTS if artifact.name == name)


def of_stage(stage: str) -> list[Artifact]:
    """The artifacts that the stage writes, without datasets where WANDB_LOG_DATASET says no."""
    datasets = os.environ.get("WANDB_LOG_DATASET", "true").lower() not in ("false", "0", "no", "off")
    return [a for a in ARTIFACTS if a.stage == stage and outputs(a) and (datasets or a.type != "dataset")]


def read_by(stage: str) -> list[Artifact]:
    """The artifacts of other stages that dvc.yaml names as dependencies of this one."""
    raw = params.read("params.yaml") if Path("params.yaml").is_file() else {}
    deps = [params.filled(dep, raw) for dep in _paths(_entry("dvc.yaml", stage).get("deps"))]
    others = [artifact for artifact in ARTIFACTS if artifact.stage != stage]
    return [a for a in others if any(_within(dep, out) for dep in deps for out in outputs(a))]


def outputs(artifact: Artifact) -> list[str]:
    """The outputs in dvc.yaml that make up the artifact."""
    stage = _entry("dvc.yaml", artifact.stage)
    written = {path for key in ("outs", "metrics", "plots") for path in _paths(stage.get(key))}
    return sorted(path for path in written if _within(path, artifact.path))


def content(artifact: Artifact) -> Content:
    """Read and hash what is on disk. Raises FileNotFoundError where an output is not there."""
    md5 = {path: hashing.tree_md5(path) for path in outputs(artifact)}
    found = [file for path in md5 for file in ([Path(path)] if Path(path).is_file() else hashing.files_below(path))]
    names = {file.relative_to(artifact.path).as_posix(): file for file in found}
    return Content(artifact, names, md5, hashing.content_hash(artifact.path, found))


def locked(stage: str) -> dict[str, Any]:
    """The stage's entry of dvc.lock: `outs` and `deps` as {path: md5}, and `params`; empty where it never ran."""
    entry = _entry("dvc.lock", stage)
    sides = {key: {item["path"]: item.get("md5") for item in entry.get(key, [])} for key in ("deps", "outs")}
    return sides | {"params": entry.get("params", {})} if entry else {}


def metadata(content: Content, params: Any) -> dict[str, Any]:
    """What goes with an artifact version, without secrets: identity, origin, counts and the data's own manifest."""
    about = {
        "dvc_md5": content.md5,
        "content_hash": content.hash,
        "stage": content.artifact.stage,
        "params": params,
        "git_commit": git_commit(),
        "experiment": os.environ.get("DVC_EXP_NAME"),
        "files": len(content.files),
        "bytes": content.bytes,
        "counts": _numbers(Path(f"reports/{content.artifact.stage}.json")),
    }
    manifest = content.files.get("manifest.json")
    if manifest and manifest.stat().st_size <= _LARGEST_MANIFEST:
        about["manifest"] = json.loads(manifest.read_text(encoding="utf-8"))
    return dict(redacted(about))


def aliases(content: Content) -> list[str]:
    """`latest`, the short content hash and, in a DVC experiment, its name."""
    experiment = re.sub(r"[^\w.-]", "-", os.environ.get("DVC_EXP_NAME", ""))
    return ["latest", content.alias, *([experiment] if experiment else [])]


def git_commit() -> str | None:
    """The commit that is checked out, 40 hexadecimal digits; None outside of git."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def group() -> str:
    """The W&B group of the runs of one pass through the pipeline: DVC's experiment, or the commit."""
    return os.environ.get("DVC_EXP_NAME") or (git_commit() or "no-commit")[:7]


def find(api: Any, content: Content) -> Any | None:
    """The version on the server that holds exactly this content, or None."""
    return find_by_hash(api, content.artifact, content.hash)


def find_by_hash(api: Any, artifact: Artifact, content_hash: str) -> Any | None:
    """The version of the artifact with that content hash, or None."""
    import wandb

    try:
        found = api.artifact(f"{artifact.name}:{content_hash[:_ALIAS]}", type=artifact.type)
    except (wandb.errors.CommError, ValueError):
        return None
    return found if found.metadata.get("content_hash") == content_hash else None


def log(run: Any, content: Content, params: Any, keep: Path | None = None) -> None:
    """Log the content as an artifact of the run; returns when the server has confirmed it, else raises.

    `keep`: the run is offline, and what `wandb sync` will send later must not change until then: hard links to the
    files are put into this folder (copies where the file system has none). Online nothing is copied.
    """
    import wandb

    name = content.artifact.name
    artifact = wandb.Artifact(name, content.artifact.type, metadata=metadata(content, params))
    for path, file in content.files.items():
        source = _linked(file, keep / name / path) if keep else file
        # Absolute: the SDK's service reads the file, and its working directory may be another.
        artifact.add_file(str(source.absolute()), name=path, policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=aliases(content))
    if keep:
        return
    patience = os.environ.get("WANDB_FINISH_TIMEOUT") or 60 + content.bytes / _BYTES_PER_SECOND
    artifact.wait(timeout=int(float(patience)))
    if artifact.state != "COMMITTED" or artifact.file_count != len(content.files):
        raise WandbError(
            f"{name} was not confirmed ({artifact.state}, {artifact.file_count} of {len(content.files)} files)"
        )


def rank(api: Any) -> str | None:
    """Write the evaluated bits per byte to the model's version and give `best` to the lowest one.

    Bits per byte do not depend on the tokenizer but on the text: only versions that were evaluated on the same
    validation text as this one compare. Returns the version's name, or None where there is nothing to rank.
    """
    bits = bits_per_byte()
    model = named("model")
    version = find(api, content(model)) if bits is not None and Path(model.path).exists() else None
    if version is None:
        return None
    text = validation_text()
    if (version.metadata.get("bits_per_byte"), version.metadata.get("validation_text")) != (bits, text):
        version.metadata |= {"bits_per_byte": bits, "validation_text": text}
        version.save()
    alike = [v for v in api.artifacts(model.type, model.name) if v.metadata.get("validation_text") == text]
    scored = [v for v in alike if v.metadata.get("bits_per_byte") is not None]
    best = min(scored, key=lambda v: float(v.metadata["bits_per_byte"]))
    if "best" not in best.aliases:
        best.aliases.append("best")
        best.save()
    return str(best.source_name)


def bits_per_byte() -> float | None:
    """What reports/evaluate.json says of the validation text."""
    return _numbers(Path("reports/evaluate.json")).get("val.bits_per_byte")


def validation_text() -> str | None:
    """The hash of the text that the evaluation read."""
    path = Path("data/clean/val")
    return hashing.content_hash(path) if path.is_dir() else None


def _numbers(report: Path) -> dict[str, float]:
    """The numbers of a JSON report, those of nested objects under dotted names."""
    try:
        levels = [("", json.loads(report.read_text(encoding="utf-8")))]
    except (OSError, ValueError):
        return {}
    found = {}
    for prefix, level in levels:
        for key, value in level.items():
            if isinstance(value, dict):
                levels.append((f"{prefix}{key}.", value))
            elif isinstance(value, (int, float)):
                found[prefix + key] = value
    return found


def _linked(file: Path, place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), place)
    except OSError:  # another file system, or one without hard links
        place.write_bytes(file.read_bytes())
    return place


def _entry(file: str, stage: str) -> dict[str, Any]:
    """What dvc.yaml or dvc.lock says of a stage; {} where it has none of that name."""
    folder, _, name = stage.rpartition("/")
    try:
        read = yaml.safe_load(Path(folder, file).read_text(encoding="utf-8")) or {}
    except OSError:
        return {}
    entry: dict[str, Any] = (read.get("stages") or {}).get(name, {})
    return entry


def _paths(entries: Iterable[Any] | None) -> list[str]:
    """The paths of dvc.yaml's lists, whose items are a path or {path: options}."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries or []]


def _within(path: str, folder: str) -> bool:
    return PurePosixPath(path).is_relative_to(folder)
