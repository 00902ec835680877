"""`push` by the real client against a small Hub on the loopback."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import hub
from pipeline.errors import UserError

TOKEN = "hf_not_a_real_token"
ROOT = Path(__file__).parents[2]


class Hub(BaseHTTPRequestHandler):
    """What the client needs to make a repository and commit to it: ordinary files inline, *.safetensors by LFS."""

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._answer({"error": "Invalid credentials"}, 401)
        return False

    def do_GET(self) -> None:
        if not self._allowed():
            return
        if self.path.startswith("/api/models/me/stories/tree/main"):
            self._answer([{"type": "file", "path": p, "size": 1, "oid": "0" * 40} for p in self.server.files])
        elif self.path.startswith("/api/models/me/stories"):
            self._answer({"id": "me/stories", "private": self.server.private, "siblings": [], "sha": "0" * 40})

    def do_PUT(self) -> None:  # where the LFS batch sent the client: the address is the secret
        self.server.files[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if not self._allowed():
            return
        url = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            if self.server.existing:
                self._answer({"error": "You already created this model repo", "url": f"{url}/me/stories"}, 409)
                return
            self.server.private = wanted["private"]
            self._answer({"url": f"{url}/{wanted.get('organization', 'me')}/{wanted['name']}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            kinds = [
                (f["path"], "lfs" if f["path"].endswith(".safetensors") else "regular")
                for f in json.loads(body)["files"]
            ]
            self._answer({"files": [{"path": p, "uploadMode": k, "shouldIgnore": False} for p, k in kinds]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            found = [
                o | {"actions": {"upload": {"href": f"{url}/lfs/{o['oid']}"}}} for o in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": found})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "deletedFile":
                    del self.server.files[entry["value"]["path"]]
                elif entry["key"] == "lfsFile":
                    self.server.files[entry["value"]["path"]] = self.server.files.pop(f"/lfs/{entry['value']['oid']}")
            self._answer({"commitUrl": f"{url}/me/stories/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self._answer({"error": f"unknown {self.path}"}, 404)

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        chunks = b""
        while size := int(self.rfile.readline(), 16):
            chunks += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return chunks


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.private, server.existing = {}, False, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


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
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder.parent / "home")}
    environment["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}" if server else "http://127.0.0.1:9"
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
