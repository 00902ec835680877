"""Tracking with the real wandb SDK and CLI against tests/wandb_server.py: both ways, and through every fault."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
import yaml

from pipeline import tracking
from pipeline.errors import UserError
from pipeline.hashing import content_hash, tree_md5
from pipeline.tracking import artifacts, runs, server
from tests.tracking import wandb_server
from tests.tracking.wandb_server import ENTITY, KEY, WandbServer

ROOT = Path(__file__).parents[2]
STAGES = {
    "download": {"outs": ["data/raw"], "metrics": [{"reports/download.json": {"cache": False}}]},
    "clean": {"deps": ["data/raw"], "outs": ["data/clean"]},
    "tokenize": {"deps": ["data/clean"], "outs": ["data/tokenizer", "data/tokens"]},
    "train": {
        "deps": ["data/tokens", "data/tokenizer"],
        "outs": ["models/litgpt"],
        "metrics": [{"reports/train.json": {"cache": False}}],
    },
    "evaluate": {"deps": ["models/litgpt", "data/clean"], "metrics": [{"reports/evaluate.json": {"cache": False}}]},
    "export": {"deps": ["models/litgpt", "data/tokenizer"], "outs": ["models/hf"]},
}
CONFIG = {"clean": {"min_chars": 20}, "train": {"max_tokens": 1000}}
SCRIPT = "\n".join(
    [
        "import sys; from pathlib import Path",
        "for out in sys.argv[1].split(','):",
        "    Path(out).parent.mkdir(parents=True, exist_ok=True)",
        "    if out.endswith('.json'): Path(out).write_text('{\"val\": {\"bits_per_byte\": 1.5}}'); continue",
        "    for name in ('train/part-0.bin', 'val/part-0.bin', 'empty', 'manifest.json'):",
        "        file = Path(out) / name; file.parent.mkdir(parents=True, exist_ok=True)",
        "        body = {'empty': b'', 'manifest.json': b'{\"documents\": 3}'}.get(name)",
        "        file.write_bytes((out + name).encode() * 50 if body is None else body)",
    ]
)


def outs(stage: str) -> list[str]:
    return [o if isinstance(o, str) else next(iter(o)) for k in ("outs", "metrics") for o in STAGES[stage].get(k, [])]


def write_outputs(stage: str, text: str = "") -> None:
    """What the stage writes: a few small files, different for another text."""
    subprocess.run([sys.executable, "-c", SCRIPT, ",".join(outs(stage))], check=True)
    if text:
        (Path(outs(stage)[0]) / "train/part-0.bin").write_text(text)


def run_stage(stage: str, text: str = "", resume_key: str | None = None) -> None:
    with tracking.stage_run(stage, CONFIG, resume_key=resume_key) as run:
        run.log({"loss": 2.0}, tokens=100)
        write_outputs(stage, text)
        run.mirror()


def write_lock(*stages: str) -> None:
    """What DVC writes after these stages."""
    lock = {}
    for stage in stages:
        sides = {"deps": STAGES[stage].get("deps", []), "outs": outs(stage)}
        lock[stage] = {side: [{"path": p, "md5": tree_md5(p)} for p in paths] for side, paths in sides.items()}
        lock[stage]["params"] = {"params.yaml": CONFIG}
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": lock}))


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wandb", *arguments]
    shell = {name: value for name, value in os.environ.items() if name not in ("WANDB_SERVICE", "WANDB_SILENT")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=shell)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def _server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running
    wandb.teardown()


@pytest.fixture
def wb(_server: WandbServer, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """The server, empty and well, and the environment of somebody who uses it."""
    _server.forget()
    for name, value in _server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "online")
    yield _server
    assert not _server.unknown


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty clone, its own home, and no W&B in the environment."""
    home = tmp_path / "home"
    for name in [*os.environ]:
        if name.startswith(("WANDB_", "DVC_")):
            monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return empty_clone(tmp_path / "clone", monkeypatch)


def empty_clone(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path.mkdir()
    monkeypatch.chdir(path)
    monkeypatch.setenv("WANDB_DIR", str(path))
    stages = {stage: {"cmd": f'"{sys.executable}" work.py {",".join(outs(stage))}'} | STAGES[stage] for stage in STAGES}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    Path("work.py").write_text(SCRIPT)
    return path


# Not set up


def test_unset_nothing_is_contacted_and_one_line_says_so(project: Path) -> None:
    code = (
        "import sys; from pipeline import tracking\n"
        "with tracking.stage_run('clean', {}) as run:\n"
        "    run.log({'loss': 1.0}, tokens=1); run.use('raw'); run.mirror()\n"
        "assert 'wandb' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "W&B: off (WANDB_PROJECT not set); nothing is contacted\n"
    assert not done.stderr


def test_wandb_login_is_enough_and_its_key_is_never_shown(
    wb: WandbServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    run_stage("download")
    assert "W&B: off (not logged in: run `wandb login`, or set WANDB_API_KEY); nothing" in capfd.readouterr().out
    with pytest.raises(UserError, match="not logged in: run `wandb login`"):
        tracking.mirror()
    assert not wb.requests
    cli("login", "--relogin", "--host", wb.url, KEY)
    run_stage("download")
    write_lock("download")
    tracking.mirror()
    assert wb.jobs()["download"].state == "finished" and len(wb.committed("raw")) == 1
    wb.fault(403)
    with pytest.raises(UserError, match="403"):
        tracking.mirror()
    assert server.redacted(f"refused: {KEY}") == "refused: ***"
    assert KEY not in "".join(capfd.readouterr())


def test_a_full_disk_is_one_line(wb: WandbServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.setattr(runs, "_LEAST_FREE", 2**60)
    run_stage("download")
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "the disk is full" in said[0] and "the stage goes on" in said[0]


# A stage's run


def test_run_has_config_group_and_curves_over_tokens(wb: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-daks")
    with tracking.stage_run("train", CONFIG) as run:
        run.summarize({"bits per byte": 0.54})
        for tokens in (100, 200):
            run.log({"train/loss": 2.0, "val/loss": 2.1}, tokens=tokens)
        run.log_table("samples", ["prompt", "story"], [["Once", "upon a time"]])
        run.log_heatmap("expert load", [[0.5, 0.5], [0.1, 0.9]], tokens=200, x="expert", y="layer")
    watched = wb.jobs()["train"]
    assert (watched.state, watched.attributes["groupName"]) == ("finished", "puffy-daks")
    assert watched.config == CONFIG
    assert json.loads(watched.summary)["bits per byte"] == 0.54
    assert [row["tokens"] for row in watched.rows if "train/loss" in row] == [100, 200]
    axes = json.loads(watched.attributes["config"])["_wandb"]["value"]["m"]
    assert any(axis.get("2") == "*" for axis in axes)
    assert {row["_type"] for rows in watched.rows for row in rows.values() if isinstance(row, dict)} == {
        "table-file",
        "image-file",
    }
    assert any(name.startswith("media/images/expert load") for name in watched.files)


def test_resumed_training_continues_its_run(wb: WandbServer) -> None:
    for tokens in (100, 200):
        with tracking.stage_run("train", CONFIG, resume_key="fingerprint") as run:
            run.log({"loss": 2.0}, tokens=tokens)
    with tracking.stage_run("train", CONFIG, resume_key="another") as run:
        run.log({"loss": 2.0}, tokens=100)
    assert [[row["tokens"] for row in run.rows] for run in wb.runs.values()] == [[100, 200], [100]]


def test_a_stage_that_fails_is_a_failed_run(wb: WandbServer) -> None:
    with pytest.raises(ZeroDivisionError), tracking.stage_run("clean", CONFIG):
        _ = 1 / 0
    assert wb.jobs()["clean"].state == "failed"


def test_only_rank_0_is_watched(wb: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    run_stage("download")
    assert not wb.requests


# Artifacts, there and back


def test_round_trip_byte_for_byte_through_wandb_artifact_get(wb: WandbServer) -> None:
    run_stage("download")
    cli("artifact", "get", f"{ENTITY}/stories/raw:latest", "--root", "got")
    assert content_hash("got") == content_hash("data/raw")
    version = wb.version("raw:latest")
    said = json.loads(version.metadata)
    assert said["dvc_md5"] == {"data/raw": tree_md5("data/raw")}
    assert said["content_hash"] == content_hash("data/raw")
    assert (said["stage"], said["params"], said["manifest"], said["files"]) == ("download", CONFIG, {"documents": 3}, 4)
    assert set(version.aliases) == {"latest", content_hash("data/raw")[:12]}


def test_same_content_again_makes_no_version_and_uploads_nothing(wb: WandbServer) -> None:
    run_stage("download")
    before = wb.bytes_uploaded.copy()
    run_stage("download")
    assert (wb.bytes_uploaded["artifact"], wb.bytes_uploaded["manifest"]) == (before["artifact"], before["manifest"])
    assert len(wb.committed("raw")) == 1
    assert len(wb.runs) == 2 and all(len(run.outputs) == 2 for run in wb.runs.values())


def test_big_outputs_are_not_copied(wb: WandbServer, project: Path) -> None:
    run_stage("download", text="x" * 300_000)
    home = [file for file in (project.parent / "home").rglob("*") if file.is_file()]
    copies = [
        file for file in [*home, *(project / "wandb").rglob("*")] if file.is_file() and file.stat().st_size >= 300_000
    ]
    assert copies == []


def test_datasets_stay_here_where_asked(wb: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_LOG_DATASET", "false")
    for stage in ("download", "tokenize", "train"):
        run_stage(stage)
    assert {version.type for version in wb.versions} == {"model", "report"}


def test_lineage_of_the_whole_pipeline(wb: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-daks")
    for stage in STAGES:
        run_stage(stage)
    read = {job: {v.name for v in run.inputs} for job, run in wb.jobs().items()}
    written = {job: {v.name for v in run.outputs} for job, run in wb.jobs().items()}
    assert read == {
        "download": set(),
        "clean": {"raw:v0"},
        "tokenize": {"clean:v0"},
        "train": {"tokens:v0", "tokenizer:v0"},
        "evaluate": {"model:v0", "clean:v0"},
        "export": {"model:v0", "tokenizer:v0"},
    }
    assert written == {
        "download": {"raw:v0", "report-download:v0"},
        "clean": {"clean:v0"},
        "tokenize": {"tokenizer:v0", "tokens:v0"},
        "train": {"model:v0", "report-train:v0"},
        "evaluate": {"report:v0"},
        "export": {"model-hf:v0"},
    }
    assert {run.attributes["groupName"] for run in wb.runs.values()} == {"puffy-daks"}
    assert {"latest", "puffy-daks", "best"} < set(wb.version("model:v0").aliases)


def test_best_is_the_lowest_bits_per_byte_on_the_same_text(wb: WandbServer) -> None:
    def train_and_evaluate(model: str, bits: float) -> None:
        run_stage("train", text=model)
        with tracking.stage_run("evaluate", CONFIG) as run:
            Path("reports").mkdir(exist_ok=True)
            Path("reports/evaluate.json").write_text(json.dumps({"val": {"bits_per_byte": bits}}))
            run.mirror()

    write_outputs("clean")
    for model, bits in (("a", 1.2), ("b", 1.0), ("c", 1.1)):
        train_and_evaluate(model, bits)
    assert wb.version("model:best").name == "model:v1"
    Path("data/clean/val/part-0.bin").write_text("harder text")
    train_and_evaluate("d", 1.5)
    assert wb.version("model:best").name == "model:v3"


# moe mirror


def test_second_mirror_sends_0_bytes(wb: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in ("download", "clean"):
        write_outputs(stage)
    write_lock("download", "clean")
    tracking.mirror(dry_run=True)
    assert not wb.versions and "would upload raw" in capsys.readouterr().out
    tracking.mirror()
    assert {v.name for v in wb.jobs()["clean"].inputs} == {"raw:v0"}
    sent, runs = wb.bytes_uploaded.total(), len(wb.runs)
    tracking.mirror()
    assert (wb.bytes_uploaded.total(), len(wb.runs)) == (sent, runs)
    assert "raw is there as raw:v0" in capsys.readouterr().out


def test_mirror_takes_only_what_dvc_lock_says(wb: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
    write_outputs("download")
    write_lock("download")
    write_outputs("download", text="changed since")
    tracking.mirror("download")
    assert not wb.committed("raw")
    assert "not what dvc.lock says" in capsys.readouterr().err
    with pytest.raises(UserError, match="there are download, clean"):
        tracking.mirror("dowload")


def test_mirror_moves_latest_back(wb: WandbServer) -> None:
    for text in ("a", "b"):
        run_stage("download", text)
    write_outputs("download", "a")
    write_lock("download")
    tracking.mirror()
    assert wb.version("raw:latest").name == "raw:v0" and len(wb.committed("raw")) == 2


# Offline


def test_offline_then_sync_gives_the_same_artifacts(wb: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY")
    for stage in ("download", "clean"):
        run_stage(stage)
    write_lock("download", "clean")
    hashes = {name: content_hash(f"data/{name}") for name in ("raw", "clean")}
    assert not wb.requests
    shutil.rmtree("data/raw")  # what is sent later is what was there then
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    cli("sync", *map(str, sorted(Path("wandb").glob("offline-run-*"))))
    for name, content in hashes.items():
        cli("artifact", "get", f"{ENTITY}/stories/{name}:{content[:12]}", "--root", f"got-{name}")
        assert content_hash(f"got-{name}") == content
    assert not wb.jobs()["clean"].inputs
    sent = wb.bytes_uploaded.total()
    write_outputs("download")
    tracking.mirror()
    assert {v.name for v in wb.jobs()["clean"].inputs} == {"raw:v0"}
    assert wb.bytes_uploaded.total() == sent and len(wb.runs) == 2


# Faults


@pytest.fixture
def impatient(wb: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PATIENCE", 1.0)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "3")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", [401, 403, 429, 500, "hang", "drop", "refused"])
def test_fault_at_the_start(fault: int | str, wb: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
    wb.close() if fault == "refused" else wb.fault(fault)
    run_stage("download")
    said = capsys.readouterr()
    assert said.err.count("warning") == 1 and "`moe mirror`" in said.err and KEY not in said.err
    assert len(list(Path("wandb").glob("offline-run-*"))) == 1
    wb.listen() if fault == "refused" else wb.heal()
    write_lock("download")
    tracking.mirror()
    assert wb.version("raw:latest").entries.keys() == {"train/part-0.bin", "val/part-0.bin", "empty", "manifest.json"}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("fault", "only"),
    [
        (500, "CreateArtifactFiles"),
        (403, "/upload/artifact"),
        ("hang", "/upload/artifact"),
        ("drop", "CommitArtifact"),
        ("refused", ""),
    ],
)
def test_fault_in_the_middle(fault: int | str, only: str, wb: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.stage_run("download", CONFIG) as run:
        run.log({"loss": 2.0}, tokens=100)
        write_outputs("download")
        wb.close() if fault == "refused" else wb.fault(fault, only=only)
        run.mirror()
    assert capsys.readouterr().err.count("warning") == 1
    assert not wb.committed("raw")
    wb.listen() if fault == "refused" else wb.heal()
    write_lock("download")
    tracking.mirror()
    assert wb.version("raw:latest").state == "COMMITTED"


@pytest.mark.usefixtures("impatient")
def test_curves_that_did_not_arrive_are_named_and_sync_brings_them(
    wb: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracking.stage_run("train", CONFIG) as run:
        wb.close()
        run.log({"loss": 2.0}, tokens=100)
    wb.listen()
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    cli("sync", *said.split("`wandb sync ")[1].split("`")[0].split())
    assert [row["tokens"] for row in wb.jobs()["train"].rows] == [100]


@pytest.mark.usefixtures("impatient")
def test_mirror_says_what_is_wrong_and_claims_nothing(wb: WandbServer) -> None:
    write_outputs("download")
    write_lock("download")
    wb.fault(500, only="CommitArtifact")
    with pytest.raises(UserError, match="repeat the command"):
        tracking.mirror()
    wb.fault(401)
    with pytest.raises(UserError, match="does not know this key"):
        tracking.mirror()


def test_no_key_anywhere(wb: WandbServer, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_0123456789secret"
    monkeypatch.setenv("HF_TOKEN", secret)
    address = f"https://me:passw0rd@host/x.jsonl?size=1&token=t0ken&auth={secret}"
    with tracking.stage_run("download", {"download": {"urls": [address]}}) as run:
        write_outputs("download")
        run.mirror()
    sent = [v.metadata for v in wb.versions] + [json.dumps(run.attributes) for run in wb.runs.values()]
    sent += [str(run.files) + str(run.history) for run in wb.runs.values()]
    kept = [file.read_bytes().decode(errors="replace") for file in project.rglob("*") if file.is_file()]
    assert "https://***@host/x.jsonl?size=1&token=***" in sent[0]
    for key in (KEY, secret, "passw0rd", "t0ken"):
        assert not any(key in text for text in sent + kept), key


# moe fetch, and an artifact as the source


def test_fetch_puts_the_output_in_place_and_repro_goes_on_after_it(
    wb: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dvc.repo import Repo

    for stage in ("download", "clean", "tokenize", "train"):
        write_outputs(stage)
    write_outputs("train", text="trained elsewhere")
    write_lock("train")
    tracking.mirror("train")
    trained = content_hash("models/litgpt")

    empty_clone(tmp_path / "other", monkeypatch)
    with Repo.init(no_scm=True) as repo:
        tracking.fetch("model:latest")
        assert "train is frozen" in capsys.readouterr().out
        repo.reproduce()
        assert content_hash("models/litgpt") == trained and Path("models/hf").exists()
    # With what it depends on in place nothing needs to be frozen, and a change of those trains anew.
    dvc = yaml.safe_load(Path("dvc.yaml").read_text())
    del dvc["stages"]["train"]["frozen"]
    Path("dvc.yaml").write_text(yaml.safe_dump(dvc))
    shutil.rmtree("models")
    tracking.fetch("model:latest")
    with Repo() as repo:
        assert {stage.name for stage in repo.reproduce()} <= {"export", "evaluate"}
    assert content_hash("models/litgpt") == trained
    assert "frozen" not in Path("dvc.yaml").read_text()


def test_a_damaged_file_is_refused_and_nothing_is_changed(wb: WandbServer) -> None:
    run_stage("download")
    before = content_hash("data/raw")
    digest = next(digest for digest, body in wb.blobs.items() if b"train/part" in body)
    wb.blobs[digest] = b"?" + wb.blobs[digest][1:]
    with pytest.raises(UserError, match=r"did not arrive as the manifest says .*train/part-0\.bin"):
        tracking.fetch("raw:latest")
    assert content_hash("data/raw") == before and [p.name for p in Path("data").iterdir()] == ["raw"]


def test_a_hash_other_than_dvcs_is_refused(wb: WandbServer) -> None:
    run_stage("download")
    version = wb.version("raw:latest")
    version.metadata = version.metadata.replace(tree_md5("data/raw"), "0" * 32 + ".dir")
    with pytest.raises(UserError, match="DVC had 0000"):
        tracking.fetch("raw:latest")
    with pytest.raises(UserError, match=r"raw:v7"):
        tracking.fetch("raw:v7")


def claim(wb: WandbServer, name: str, outputs: object) -> None:
    """Let the metadata of an artifact say something else, as somebody who may write to the project can."""
    version = wb.version(name)
    version.metadata = json.dumps(json.loads(version.metadata) | {"dvc_md5": outputs})


@pytest.mark.parametrize(
    "output", ["reports/../../secret.txt", "reports/evil.json", "reports/train.json", "../stolen", "/tmp/stolen", ""]
)
def test_only_outputs_that_dvc_yaml_declares_are_fetched(wb: WandbServer, project: Path, output: str) -> None:
    run_stage("download")
    secret = project.parent / "secret.txt"
    secret.write_text("mine")
    before = {file: file.read_bytes() for file in [*project.rglob("*.json"), *project.rglob("*.bin")]}
    claim(wb, "report-download:latest", {output: tree_md5("reports/download.json")})
    with pytest.raises(UserError, match=r"is no output of download in dvc\.yaml; it has reports/download\.json"):
        tracking.fetch("report-download:latest")
    assert secret.read_text() == "mine" and not (project.parent / "stolen").exists()
    assert before == {file: file.read_bytes() for file in [*project.rglob("*.json"), *project.rglob("*.bin")]}


def test_metadata_of_another_form_and_an_output_that_is_not_in_the_artifact_are_refused(wb: WandbServer) -> None:
    run_stage("tokenize")
    for outputs, words in (
        (["data/tokens"], "is no output of this pipeline"),
        ({"data/tokenizer": "0"}, "is no output of tokenize"),
    ):
        claim(wb, "tokens:latest", outputs)
        with pytest.raises(UserError, match=words):
            tracking.fetch("tokens:latest")


def test_a_link_out_of_the_project_is_not_written_through(wb: WandbServer, project: Path) -> None:
    run_stage("download")
    elsewhere = project.parent / "elsewhere"
    shutil.move("data", elsewhere)
    Path("data").symlink_to(elsewhere)
    (elsewhere / "raw/empty").write_text("mine")
    with pytest.raises(UserError, match=r"data/raw is a link out of the project"):
        tracking.fetch("raw:latest")
    assert (elsewhere / "raw/empty").read_text() == "mine"


def test_fetch_waits_for_nobody_and_changes_nothing_while_dvc_runs_the_stage(wb: WandbServer) -> None:
    from dvc.repo import Repo
    from dvc.rwlock import rwlock

    run_stage("download")
    before = content_hash("data/raw")
    write_outputs("download", text="of the run that goes on")
    with Repo.init(no_scm=True) as repo:
        path = str(Path("data/raw").absolute())
        with rwlock(repo.tmp_dir, repo.fs, "dvc repro", [], [path], False):
            with pytest.raises(UserError, match="is busy, it is being blocked by"):
                tracking.fetch("raw:latest")
            assert content_hash("data/raw") != before
        tracking.fetch("raw:latest")
        assert content_hash("data/raw") == before


def test_source_artifact_is_the_same_files_and_is_recorded(wb: WandbServer) -> None:
    run_stage("clean")
    with tracking.stage_run("download", CONFIG):
        source = tracking.source_artifact(f"{ENTITY}/stories/clean:latest", Path("fetched"))
    assert content_hash(source.path) == content_hash("data/clean") == source.content_hash
    assert source.name == f"{ENTITY}/stories/clean:v0"
    assert {v.name for v in wb.jobs()["download"].inputs} == {"clean:v0"}


# The server itself


def test_the_cli_puts_and_lists(wb: WandbServer) -> None:
    write_outputs("download")
    cli("artifact", "put", "--name", "stories/mine", "--type", "dataset", "data/raw")
    assert "mine:v0" in cli("artifact", "ls", f"{ENTITY}/stories").stderr
    assert wandb.__version__ in str(wandb_server.__doc__)


def test_table_has_each_artifact_of_the_pipeline() -> None:
    names = {a.name for a in artifacts.ARTIFACTS}
    assert names >= {"raw", "clean", "tokenizer", "tokens", "model", "report", "model-hf"}
