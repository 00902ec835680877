"""The commands: `moe mirror` (what dvc.lock says, to W&B) and `moe fetch` (an artifact, back as a stage's output)."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline import console, hashing
from pipeline.errors import UserError
from pipeline.files import written_whole
from pipeline.tracking import artifacts, server
from pipeline.tracking.artifacts import ARTIFACTS, Artifact, Content
from pipeline.tracking.runs import open_run


@dataclass(frozen=True)
class Source:
    """A fetched artifact version: the folder, `entity/project/name:v3`, its content hash and its metadata."""

    path: Path
    name: str
    content_hash: str
    metadata: dict[str, Any]


def mirror(stage: str | None = None, dry_run: bool = False) -> None:
    """Bring what dvc.lock says to W&B: versions that it lacks, aliases, lineage, `best`. Recomputes nothing.

    Prints a line for each artifact. Raises UserError where W&B cannot be reached or does not confirm an upload;
    what was confirmed stays, so that repeating the command completes it.
    """
    stages = list(dict.fromkeys(artifact.stage for artifact in ARTIFACTS))
    if stage is not None and stage not in stages:
        raise UserError(f"mirror: no stage {stage!r} writes an artifact; there are {', '.join(stages)}")
    api = server.api()
    if not os.environ.get("WANDB_PROJECT"):
        raise UserError("W&B: WANDB_PROJECT not set: export the project to mirror to")
    begun = [name for name in stages if "/" not in name or artifacts.locked(name)]  # another pipeline may never run
    for name in begun if stage is None else [stage]:
        with _faults_in_words():
            _mirror_stage(api, name, dry_run)
    if not dry_run and stage in (None, "evaluate"):
        with _faults_in_words():
            best = artifacts.rank(api)
            if best:
                console.say(f"mirror: best is {best}")


def fetch(artifact: str) -> None:
    """Put an artifact (`[entity/project/]name:alias`) in place as its stage's output, so that `dvc repro` goes on.

    What the same run wrote beside it (the tokenizer of the tokens, the stage's report) comes with it. Every file is
    checked against its artifact's manifest, then each output against DVC's hash, and only then are outputs replaced.
    dvc.lock then says that the stage has run with the dependencies that are here now; where some are missing the
    stage is frozen too. Prints what was done. Raises UserError for a wrong name, a wrong hash, or where W&B cannot be
    reached.
    """
    version = _version(artifact)
    row = _row(version)
    if row is None or not isinstance(version.metadata.get("dvc_md5"), dict):
        raise UserError(
            f"{version.source_qualified_name} is no output of this pipeline; `wandb artifact get` fetches it"
        )
    with _faults_in_words():
        run = version.logged_by()
        beside = [v for v in (run.logged_artifacts() if run else []) if v.id != version.id]
    with TemporaryDirectory(dir=".", prefix=".fetch-") as folder:
        places: dict[str, Path] = {}
        for each in [version, *beside]:
            own = _row(each)
            if own is not None and own.stage == row.stage:
                aside = Path(folder) / own.name
                _download(each, aside)
                places |= _checked(each, own, aside)
        with _only_writer(row.stage) as stage:
            for output, fetched in places.items():
                with written_whole(output) as partial:
                    os.replace(fetched, partial)
            console.say(f"fetch: {', '.join(places)} from {version.source_qualified_name}: every hash is right")
            _accept(stage)


def source_artifact(artifact: str, into: Path) -> Source:
    """Fetch a dataset artifact (`entity/project/name:alias`) into the folder `into`, checked digest by digest.

    A live run of this process is recorded as reading it. Raises UserError as `fetch` does.
    """
    version = _version(artifact)
    with written_whole(into) as partial:
        _download(version, partial)
        content_hash = hashing.content_hash(partial)
    import wandb

    if wandb.run is not None and not wandb.run.offline:
        wandb.run.use_artifact(version)
    return Source(into, version.source_qualified_name, content_hash, dict(version.metadata))


def _mirror_stage(api: Any, stage: str, dry_run: bool) -> None:
    lock = artifacts.locked(stage)
    here = [content for row in artifacts.of_stage(stage) if (content := _as_locked(row, lock)) and content.files]
    lacking = [content for content in here if artifacts.find(api, content) is None]
    for content in lacking:
        what = f"{content.artifact.name} ({content.alias}, {len(content.files)} files, {console.size(content.bytes)})"
        console.say(f"mirror: {'would upload' if dry_run else 'uploading'} {what}")
    if dry_run:
        for content in here:
            if content not in lacking:
                console.say(f"mirror: {content.artifact.name} ({content.alias}) is there")
        return
    if lacking:
        _upload(stage, lacking, lock["params"])
    for content in here:
        version = artifacts.find(api, content)
        if version is None:
            raise UserError(f"mirror: W&B does not confirm {content.artifact.name} ({content.alias}); try again")
        missing = [alias for alias in artifacts.aliases(content) if alias not in version.aliases]
        if missing:
            version.aliases.extend(missing)
            version.save()
        _complete_lineage(api, version, stage)
        state = "uploaded" if content in lacking else "is there"
        console.say(f"mirror: {content.artifact.name} {state} as {version.source_name} ({content.alias})")


def _as_locked(row: Artifact, lock: dict[str, Any]) -> Content | None:
    """What is on disk, where that is what dvc.lock says; else None, with a line that says what to do."""
    wanted = {path: lock["outs"].get(path) for path in artifacts.outputs(row)} if lock else {}
    if not wanted:
        console.say(f"mirror: {row.name}: the stage {row.stage} has not run yet")
        return None
    try:
        content = artifacts.content(row)
    except FileNotFoundError as error:
        console.warn(f"mirror: {row.name}: {error}: `dvc checkout {' '.join(wanted)}` or `dvc repro` first")
        return None
    changed = [path for path, md5 in wanted.items() if content.md5[path] != md5]
    if changed:
        console.warn(
            f"mirror: {row.name}: {', '.join(changed)} is not what dvc.lock says: `dvc checkout {' '.join(changed)}` "
            "or `dvc repro`"
        )
        return None
    return content


def _upload(stage: str, contents: list[Content], params: Any) -> None:
    uses = {}
    for row in artifacts.read_by(stage):
        try:
            uses[row.name] = artifacts.content(row).hash
        except FileNotFoundError:
            continue
    run = open_run("online", stage, {"params": params, "lineage": uses, "mirrored": True}, resume_key=None)
    try:
        for content in contents:
            artifacts.log(run, content, params)
    finally:
        run.finish()


def _complete_lineage(api: Any, version: Any, stage: str) -> None:
    """Draw the lines to what the run read that made this version, from the hashes in its config."""
    run = version.logged_by()
    if run is None:
        return
    drawn = {used.name.split(":")[0] for used in run.used_artifacts()}
    for name, content_hash in (run.config.get("lineage") or {}).items():
        if name in drawn:
            continue
        found = artifacts.find_by_hash(api, artifacts.named(name), content_hash)
        if found is not None:
            run.use_artifact(found)
            console.say(f"mirror: {version.source_name} descends from {found.source_name}")


def _version(artifact: str) -> Any:
    """The artifact version of that name. Raises UserError."""
    import wandb

    if ":" not in artifact:
        raise UserError(f"{artifact}: name it as entity/project/name:alias, e.g. team/moe-stories/model:best")
    api = server.api()
    with _faults_in_words():
        try:
            return api.artifact(artifact)
        except (wandb.errors.CommError, ValueError) as error:
            raise UserError(f"W&B: {artifact}: {server.WandbError(error)}") from None


def _download(version: Any, into: Path) -> None:
    """Fetch all files of a version and check each against the manifest. Raises UserError."""
    for name, entry in version.manifest.entries.items():
        if entry.ref is not None or not (into / name).resolve().is_relative_to(into.resolve()):
            raise UserError(f"{version.source_qualified_name}: {name} is not a file of the artifact itself")
    into.mkdir(parents=True, exist_ok=True)
    with _faults_in_words():
        version.download(root=str(into), skip_cache=True)
    try:
        version.verify(str(into))
    except (ValueError, OSError) as error:
        name = version.source_qualified_name
        raise UserError(f"{name}: a file did not arrive as the manifest says ({error}); nothing was changed") from None


def _row(version: Any) -> Artifact | None:
    name = version.source_name.split(":")[0]
    return next((row for row in ARTIFACTS if (row.name, row.type) == (name, version.type)), None)


def _checked(version: Any, row: Artifact, aside: Path) -> dict[str, Path]:
    """{output: where it was fetched to}, each with the hash that DVC had. Raises UserError.

    The metadata is whatever somebody has uploaded: only outputs that dvc.yaml declares are taken, and only to places
    that lie in the project.
    """
    name, declared, root = version.source_qualified_name, artifacts.outputs(row), Path().resolve()
    places = {}
    for output, expected in version.metadata["dvc_md5"].items():
        if output not in declared:
            raise UserError(f"{name}: {output} is no output of {row.stage} in dvc.yaml; it has {', '.join(declared)}")
        if not Path(output).resolve().is_relative_to(root):
            raise UserError(f"{output} is a link out of the project, where nothing is written; remove the link first")
        place = aside / Path(output).relative_to(row.path)
        found = hashing.tree_md5(place) if place.exists() else "none"
        if found != expected:
            raise UserError(f"{name}: {output} has the hash {found}, DVC had {expected}")
        places[output] = place
    return places


@contextmanager
def _only_writer(name: str) -> Iterator[Any]:
    """DVC's stage of that name, while nothing else that DVC runs reads or writes its outputs. Raises UserError."""
    from dvc.exceptions import DvcException  # type: ignore[import-untyped]
    from dvc.repo import Repo  # type: ignore[import-untyped]
    from dvc.rwlock import rwlock  # type: ignore[import-untyped]

    try:
        with Repo() as repo, repo.lock:
            folder, _, name = name.rpartition("/")
            stage = repo.stage.load_one(os.path.join(folder, "dvc.yaml"), name)
            deps, outs = ([item.fs_path for item in items] for items in (stage.deps, stage.outs))
            command = " ".join(sys.argv)  # as DVC itself signs the lock, so that its own calls here hold it too
            with rwlock(repo.tmp_dir, repo.fs, command, deps, outs, repo.config["core"].get("hardlink_lock", False)):
                yield stage
    except DvcException as error:
        raise UserError(f"fetch: DVC refuses: {error}") from None


def _accept(stage: Any) -> None:
    """Write to dvc.lock that the stage has run and this came out, as `dvc commit -f` does; say what is next."""
    missing = [str(dep) for dep in stage.deps if not dep.exists]
    absent = [str(out) for out in stage.outs if not out.exists]
    # Not to the run cache: it would be given out later as what these dependencies really make.
    stage.save(allow_missing=True, run_cache=False)
    stage.commit(allow_missing=True)
    stage.frozen = bool(missing)
    stage.dump(update_pipeline=bool(missing))
    said = f"fetch: dvc.lock takes it as the output of {stage.name}; `dvc repro` goes on after it"
    if missing:
        said += (
            f". {', '.join(missing)} not here: {stage.name} is frozen (`dvc unfreeze {stage.name}` lets it run again)"
        )
    if absent:
        said += f". {', '.join(absent)} not here: DVC will run {stage.name} again for them"
    console.say(said)


@contextmanager
def _faults_in_words() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the SDK raises a dozen kinds
        raise UserError(
            f"W&B: {server.WandbError(error)}. What was confirmed stays; repeat the command later"
        ) from error
