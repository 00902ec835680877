"""A small Hugging Face Hub on loopback for the real client: repositories, commits, who is logged in, and a clock.

with serving() as server:                      # an HTTP server with `url` and what it holds: `files`, `private`, …
    os.environ["HF_ENDPOINT"] = server.url
"""

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_not_a_real_token"


class Hub(BaseHTTPRequestHandler):
    """What the client needs to make a repository and commit to it: ordinary files inline, *.safetensors by LFS."""

    def log_message(self, *_: Any) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The Date header, by this server's clock."""
        return super().date_time_string((timestamp or time.time()) + self.server.ahead)

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._answer({"error": "Invalid credentials"}, 401)
        return False

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if not self._allowed():
            return
        if self.path == "/api/whoami-v2":
            self._answer({"type": "user", "name": "me"})
        elif self.path.startswith("/api/models/me/stories/tree/main"):
            self._answer([{"type": "file", "path": p, "size": 1, "oid": "0" * 40} for p in self.server.files])
        elif self.path.startswith("/api/models/me/stories"):
            self._answer({"id": "me/stories", "private": self.server.private, "siblings": [], "sha": "0" * 40})

    def do_HEAD(self) -> None:
        self.server.asked.append(self.path)
        self._answer({})

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


@contextmanager
def serving() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.private, server.existing = {}, False, False
    server.asked, server.ahead = [], 0.0  # paths of GET and HEAD; seconds of its clock
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
