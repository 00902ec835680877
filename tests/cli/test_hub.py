"""`push` by the real client against a small Hub on the loopback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import hub
from pipeline.errors import UserError
from tests.cli.hub_server import TOKEN, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with serving() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "hf"
    made.mkdir()
    (made / "config.json").write_text('{"architectures": ["MixtralForCausalLM"]}')
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\n# stories\n")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return made


def pushed(folder: Path, server: ThreadingHTTPServer | None, token: str | None = TOKEN, private: bool = True) -> Any:
    """In a process of its own: the client reads its environment when it is imported."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder.parent / "home")}
    environment["HF_ENDPOINT"] = server.url if server else "http://127.0.0.1:9"
    if token:
        environment["HF_TOKEN"] = token
    program = (
        "import sys; from pathlib import Path; from pipeline.cli import hub; from pipeline.errors import UserError\n"
        f"try: print(hub.push(Path(sys.argv[1]), 'me/stories', {private}, False))\n"
        "except UserError as error: sys.exit(f'UserError: {error}')"
    )
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_every_file_arrives_in_a_private_repository(folder: Path, server: ThreadingHTTPServer) -> None:
    done = pushed(folder, server)
    assert done.returncode == 0, done.stderr
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name: server.files[name] for name in expected} == expected
    assert server.private is True
    assert "('model.safetensors', 10240)" in done.stdout
    assert TOKEN not in done.stdout + done.stderr


def test_files_of_an_earlier_export_go_and_the_owners_own_stay(folder: Path, server: ThreadingHTTPServer) -> None:
    earlier = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "stories-q8_0.gguf")
    own = ("LICENSE", "pictures/cat.png", ".gitattributes")
    server.files |= dict.fromkeys([*earlier, *own, "config.json"], b"old")
    done = pushed(folder, server)
    assert done.returncode == 0, done.stderr
    assert set(server.files) == {*own, "README.md", "config.json", "model.safetensors"}
    assert server.files["config.json"] == (folder / "config.json").read_bytes()


def test_public_is_said_so(folder: Path, server: ThreadingHTTPServer) -> None:
    server.private = True
    assert pushed(folder, server, private=False).returncode == 0
    assert server.private is False


def test_a_public_repository_gets_nothing_that_was_to_be_private(folder: Path, server: ThreadingHTTPServer) -> None:
    server.existing = True
    done = pushed(folder, server)
    assert "is there already and is public" in done.stderr
    assert server.files == {}


def test_a_refused_token_is_answered_in_words_and_never_shown(folder: Path, server: ThreadingHTTPServer) -> None:
    done = pushed(folder, server, token="hf_another_token")
    assert "UserError: me/stories: the Hub refuses this login (401)" in done.stderr
    assert "hf_another_token" not in done.stdout + done.stderr
    assert server.files == {}


def test_no_token_and_no_network_are_answered_in_words(folder: Path, server: ThreadingHTTPServer) -> None:
    assert "log in with `hf auth login`, or set HF_TOKEN" in pushed(folder, server, token=None).stderr
    assert "UserError: me/stories: http://127.0.0.1:9 cannot be reached" in pushed(folder, None).stderr


def test_the_token_of_hf_auth_login_is_enough(folder: Path, server: ThreadingHTTPServer) -> None:
    (folder.parent / "home").mkdir()
    (folder.parent / "home/token").write_text(TOKEN)
    done = pushed(folder, server, token=None)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in server.files


def test_a_dry_run_lists_files_and_sizes_and_needs_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = hub.push(folder, "me/stories", private=True, dry_run=True)
    assert found == [("README.md", 38), ("config.json", 41), ("model.safetensors", 10240)]


@pytest.mark.parametrize("repo_id", ["stories", "me/sto ries", "a/b/c", ""])
def test_a_bad_name_is_refused(folder: Path, repo_id: str) -> None:
    with pytest.raises(UserError, match="owner/name"):
        hub.push(folder, repo_id, private=True, dry_run=True)


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        hub.push(tmp_path, "me/stories", private=True, dry_run=True)
