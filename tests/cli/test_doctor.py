"""`moe doctor`: each check on a machine that is well, and on one that is not; servers are stand-ins on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from dvc.repo import Repo
from typer.testing import CliRunner

from pipeline.cli import doctor
from pipeline.cli.app import app
from pipeline.cli.compose import compose
from pipeline.cli.doctor import computing, light
from tests import s3_server
from tests.cli import hub_server
from tests.tracking.wandb_server import ENTITY, KEY, WandbServer

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # nothing listens at this port


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty DVC project as working folder."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    Repo.init().close()
    return tmp_path


def configure(**sections: dict[str, str]) -> None:
    """Write .dvc/config; a key with a colon, `remote:NAME`, is a section of that remote."""
    lines = []
    for section, values in sections.items():
        kind, _, name = section.partition("__")
        lines.append(f"['{kind} \"{name}\"']" if name else f"[{kind}]")
        lines += [f"    {key} = {value}" for key, value in values.items()]
    Path(".dvc/config").write_text("\n".join(lines) + "\n", encoding="utf-8")


def found(what: str, among: tuple = light.CHECKS) -> tuple[str, str]:
    """State and words of one check."""
    (finding,) = doctor.examine([check for check in among if check[0] == what])
    return finding.state, finding.words


# --- the command ------------------------------------------------------------------------------------------------------


def test_light_checks_import_neither_torch_nor_wandb_and_the_project_is_well() -> None:
    program = (
        "import sys; sys.argv = ['moe', 'doctor', '--json']; from pipeline.cli.__main__ import main\n"
        "try: main()\n"
        "finally: print({'torch', 'wandb', 'litgpt', 'transformers'} & set(sys.modules), file=sys.stderr)"
    )
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_PROJECT": "stories"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "set()\n")
    findings = {each["what"]: (each["state"], each["words"]) for each in json.loads(done.stdout)}
    assert list(findings) == [what for what, _ in light.CHECKS]
    assert {findings[what][0] for what in ("python", "packages", "project", "DVC cache")} == {"ok"}
    assert findings["W&B"] == ("ok", "offline, project stories")


def test_a_failure_is_exit_code_1_in_words_and_as_json(project: Path) -> None:
    Path("dvc.yaml").write_text("stages: {}", encoding="utf-8")
    Path("params.yaml").write_text("train: 3", encoding="utf-8")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1 and "fail  project: params.yaml:" in result.stdout
    assert "warn  configs: no configs/config.yaml here" in result.stdout
    result = CliRunner().invoke(app, ["doctor", "--json"])
    states = {each["what"]: each["state"] for each in json.loads(result.stdout)}
    assert result.exit_code == 1 and (states["project"], states["configs"]) == ("fail", "warn")


def test_without_a_project_its_checks_say_where_to_run() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("/")
        for what in ("project", "DVC cache", "DVC remote"):
            state, words = found(what)
            assert state == "warn" and "in the project's folder" in words


def test_a_check_that_meets_a_full_disk_says_so() -> None:
    def full() -> str:
        raise OSError(28, "No space left on device")

    (finding,) = doctor.examine([("disk speed", full)])
    assert finding.state == "fail" and finding.words.startswith("the disk is full")


# --- light ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("echo 'Tesla T4, 15360 MiB, 7.5'; echo 'Tesla T4, 15360 MiB, 7.5'", "2 x Tesla T4 (15360 MiB), no bfloat16"),
        ("echo 'NVIDIA RTX A6000, 49140 MiB, 8.6'", "1 x NVIDIA RTX A6000 (49140 MiB), bfloat16"),
        ("echo 'No devices were found'; exit 6", "nvidia-smi finds no GPU"),
    ],
)
def test_what_the_nvidia_driver_says_is_told_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, expected: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{answer}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    state, words = found("device")
    assert words.startswith(expected)
    _, cuda = light._torch_build()
    assert (state == "ok") == (cuda is not None and "exit" not in answer)


def test_the_build_of_torch_is_read_without_importing_it() -> None:
    import torch

    assert light._torch_build() == (torch.__version__, torch.version.cuda)


@pytest.mark.parametrize("kind", ["copy", "hardlink", "symlink"])
def test_the_kind_of_link_is_that_of_the_files_that_dvc_makes(project: Path, kind: str) -> None:
    configure(cache={"type": kind})
    state, words = found("DVC cache")
    assert state == "ok" and words.startswith({"copy": "copies: "}.get(kind, f"{kind}s: "))
    file = project / "data.txt"
    file.write_text("some text", encoding="utf-8")
    with Repo() as repo:
        repo.add(str(file))
    made = "symlink" if file.is_symlink() else "hardlink" if file.stat().st_nlink > 1 else "copy"
    assert made == kind
    assert sorted(path.name for path in project.iterdir() if not path.name.startswith(".")) == [
        file.name,
        "data.txt.dvc",
    ]


def test_a_kind_of_link_that_the_file_system_lacks_fails_before_dvc_does(project: Path) -> None:
    configure(cache={"type": "reflink"})
    state, words = found("DVC cache")
    if words.startswith("reflinks"):
        pytest.skip("this file system has reflinks")
    assert (
        state == "fail" and "cache.type = reflink" in words and "dvc config cache.type hardlink,symlink,copy" in words
    )


def test_the_remote_is_named_and_its_keys_are_not(project: Path) -> None:
    assert found("DVC remote") == ("ok", "none: dvc push has nowhere to go (docs/sharing.md says how to share)")
    configure(remote__a={"url": "/somewhere"})
    assert found("DVC remote") == ("warn", "none is the default; choose one: dvc remote default a")
    configure(core={"remote": "a"}, remote__a={"url": str(project)})
    assert found("DVC remote") == ("ok", f"a, {project}")
    configure(core={"remote": "a"}, remote__a={"url": str(project / "absent")})
    state, words = found("DVC remote")
    assert state == "warn" and "absent is not there" in words
    configure(core={"remote": "a"}, remote__a={"url": "https://me:not-to-be-seen@example.org/moe"})
    assert found("DVC remote") == ("ok", "a, https://***@example.org/moe")
    configure(core={"remote": "b"}, remote__a={"url": "/somewhere"})
    assert found("DVC remote") == ("fail", "b: config file error: remote 'b' doesn't exist")


def test_a_remote_whose_part_of_dvc_is_missing_names_it(project: Path) -> None:
    configure(core={"remote": "a"}, remote__a={"url": "gs://bucket/moe"})
    state, words = found("DVC remote")
    assert state == "fail" and "requires 'dvc-gs' to be installed" in words


# --- computing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["torch's device", "precision", "kernels", "attention", "expert layer", "disk speed"])
def test_each_part_of_the_model_computes_rightly_here(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.chdir(ROOT)
    before = sorted(ROOT.iterdir())
    state, words = found(what, computing.CHECKS)
    assert state == "ok" or (what == "disk speed" and "slow" in words), words
    assert sorted(ROOT.iterdir()) == before


def test_kernels_are_those_that_the_projects_model_meets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert found("kernels", computing.CHECKS)[0] == "warn"
    by_document = "attention: flash attention for cpu, a document at a time; "
    on_cpu = ["train.device=cpu", "train.optimizer.name=adamw"]
    for overrides, expected in [
        ([], "experts: a loop over experts, for CPUs (auto on cpu)"),
        (["train.precision=bf16-true", "model.first_k_dense_replace=1"], "for CPUs (bf16-true on cpu)"),
        (["train.precision=bf16-mixed", "model=microstories"], "experts: none (bf16-mixed on cpu)"),
    ]:
        compose(tmp_path / "params.yaml", ROOT / "configs", [*overrides, *on_cpu])
        state, words = found("kernels", computing.CHECKS)
        assert state == "ok" and words.startswith(by_document) and words.endswith(expected)


def test_a_precision_that_the_device_lacks_fails_with_what_to_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    compose(tmp_path / "params.yaml", ROOT / "configs", ["train.precision=16-mixed"])
    for what in ("precision", "kernels"):
        state, words = found(what, computing.CHECKS)
        assert state == "fail" and "take 32-true or bf16-mixed" in words


def test_where_nothing_can_compile_training_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    state, words = found("torch.compile", computing.CHECKS)
    assert state == "warn" and "no-such-compiler is not on the path; train.compile=auto goes without" in words


# --- servers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wandb() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    with hub_server.serving() as server:
        yield server


def asked(folder: Path, **environment: str) -> dict[str, tuple[str, str]]:
    """What the checks of servers find with these variables; in a process, for clients read theirs at import."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "WANDB_", "AWS_"))}
    inherited |= {"HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    inherited |= {"WANDB_CONFIG_DIR": str(folder), "NETRC": str(folder / "netrc"), "DVC_NO_ANALYTICS": "1"}
    program = (
        "import json; from pipeline.cli import doctor; from pipeline.cli.doctor import network\n"
        "print(json.dumps({what: (state, words) for state, what, words in doctor.examine(network.CHECKS)}))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, env=inherited | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for secret in (KEY, "another-key-that-nobody-knows", hub_server.TOKEN, "hf_another_token", "not-a-real-secret"):
        assert secret not in done.stdout + done.stderr
    return {what: (state, words) for what, (state, words) in json.loads(done.stdout).items()}


def test_servers_that_know_the_logins_are_well(project: Path, wandb: WandbServer, hub: ThreadingHTTPServer) -> None:
    findings = asked(project, **wandb.environment, HF_ENDPOINT=hub.url, HF_TOKEN=hub_server.TOKEN)
    assert findings == {
        "W&B server": ("ok", f"{wandb.url} knows the key; runs go to {ENTITY}"),
        "Hub server": ("ok", f"{hub.url} knows the login, of me"),
        "DVC remote's server": ("ok", "none is the default, not asked"),
        "clock": ("ok", f"right to 1 s by {wandb.url}"),
    }


def test_a_login_that_is_refused_fails_and_is_not_shown(
    project: Path, wandb: WandbServer, hub: ThreadingHTTPServer
) -> None:
    wrong = wandb.environment | {"WANDB_API_KEY": "another-key-that-nobody-knows"}
    findings = asked(project, **wrong, HF_ENDPOINT=hub.url, HF_TOKEN="hf_another_token")
    state, words = findings["W&B server"]
    assert state == "fail" and "401, it does not know this key" in words and "wandb login --relogin" in words
    state, words = findings["Hub server"]
    assert state == "fail" and "refuses this login (401); log in with `hf auth login`" in words


def test_without_a_login_the_hub_is_asked_and_wandb_is_not(
    project: Path, wandb: WandbServer, hub: ThreadingHTTPServer
) -> None:
    wandb.forget()
    findings = asked(project, WANDB_BASE_URL=wandb.url, HF_ENDPOINT=hub.url)
    assert findings["Hub server"] == ("ok", f"{hub.url} answers; not logged in")
    assert findings["W&B server"] == ("ok", "not asked: W&B is off (WANDB_PROJECT not set)")
    assert wandb.requests == []


def test_who_chose_to_be_offline_is_told_so_and_nothing_is_asked(
    project: Path, wandb: WandbServer, hub: ThreadingHTTPServer
) -> None:
    wandb.forget()
    for offline in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        mode = {"WANDB_MODE": "offline", offline: "1"}
        findings = asked(project, **wandb.environment, HF_ENDPOINT=hub.url, HF_TOKEN=hub_server.TOKEN, **mode)
        for what in ("W&B server", "Hub server", "clock"):
            state, words = findings[what]
            assert state == "ok" and words.startswith("offline")
    assert (wandb.requests, hub.asked) == ([], [])


def test_servers_that_cannot_be_reached_are_warned_of(project: Path, wandb: WandbServer) -> None:
    findings = asked(project, **wandb.environment | {"WANDB_BASE_URL": NOWHERE}, HF_ENDPOINT=NOWHERE, HF_TOKEN="x" * 9)
    assert {findings[what][0] for what in ("W&B server", "Hub server", "clock")} == {"warn"}
    assert f"{NOWHERE} cannot be reached" in findings["W&B server"][1]
    assert f"{NOWHERE} cannot be reached (ConnectError)" in findings["Hub server"][1]
    assert "HF_HUB_OFFLINE=1" in findings["Hub server"][1]
    assert findings["clock"][1] == f"not compared: no time came from {NOWHERE} or {NOWHERE}"


def test_a_server_that_hangs_is_waited_for_two_seconds(
    project: Path, wandb: WandbServer, hub: ThreadingHTTPServer
) -> None:
    wandb.fault("hang")
    try:
        findings = asked(project, **wandb.environment, HF_ENDPOINT=hub.url)
    finally:
        wandb.heal()
    state, words = findings["W&B server"]
    assert state == "warn" and f"no answer from {wandb.url} within 2 s" in words
    assert findings["clock"] == ("ok", f"right to 1 s by {hub.url}")


def test_a_server_in_trouble_is_no_refusal(project: Path, wandb: WandbServer, hub: ThreadingHTTPServer) -> None:
    wandb.fault(500)
    try:
        findings = asked(project, **wandb.environment, HF_ENDPOINT=hub.url)
    finally:
        wandb.heal()
    state, words = findings["W&B server"]
    assert state == "warn" and "answers 500" in words


@pytest.mark.parametrize(
    ("ahead", "state", "words"),
    [
        (20, "ok", "right to 20 s by"),
        (200, "warn", "200 s behind"),
        (-200, "warn", "200 s ahead of"),
        (4000, "fail", "4000 s behind"),
    ],
)
def test_the_clock_is_compared_with_a_servers(
    project: Path, hub: ThreadingHTTPServer, ahead: int, state: str, words: str
) -> None:
    hub.ahead = ahead
    said = asked(project, HF_ENDPOINT=hub.url)["clock"]
    rounded = [words.replace(str(abs(ahead)), str(abs(ahead) + off)) for off in (-1, 0, 1)]
    assert said[0] == state and said[1].startswith(tuple(rounded)), said
    assert state == "ok" or "set it (timedatectl" in said[1]


def test_an_s3_remote_is_asked(project: Path) -> None:
    with s3_server.serving("team") as environment:
        environment |= {"HF_HUB_OFFLINE": "1"}
        for url, expected in [
            ("s3://team/moe", ("ok", "shared answers, and holds nothing yet")),
            ("s3://tame/moe", ("warn", "shared answers that there is no tame: create it, or ask for access to it")),
        ]:
            configure(core={"remote": "shared"}, remote__shared={"url": url})
            assert asked(project, **environment)["DVC remote's server"] == expected
        authorise = f"{environment['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        httpx.post(authorise, content=b"0")  # from now on keys are checked
        state, words = asked(project, **environment)["DVC remote's server"]
        httpx.post(authorise, content=b"inf")  # moto keeps this for its later servers
        assert state == "fail" and words.startswith("shared refuses this login (Forbidden)")
        environment |= {"AWS_ENDPOINT_URL": NOWHERE, "AWS_MAX_ATTEMPTS": "1"}
        state, words = asked(project, **environment)["DVC remote's server"]
        assert state == "warn" and "Could not connect" in words
