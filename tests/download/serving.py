"""A small file server for tests of downloads: ranges, broken connections, failures, and the Hub's few addresses."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

REPO, COMMIT = "team/stories", "c" * 40


class Site:
    """What is served, how it misbehaves, and what was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.failures = 0  # answers 503 this many times
        self.cuts: list[int] = []  # breaks the connection after so many bytes, once each
        self.etags = True
        self.lengths = True
        self.plain: set[str] = set()  # files that the Hub keeps in git itself, without a sha256
        self.card: dict[str, object] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.authorization: str | None = None  # the header that is asked for
        self.authorizations: set[str | None] = set()  # those that came
        self.url = ""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Site]:
    site = Site(files)

    def listing(name: str) -> dict[str, object]:
        listed = entry(name, site.files[name])
        return {key: value for key, value in listed.items() if key != "lfs" or name not in site.plain}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(self.path.split("?")[0]).lstrip("/")
            site.asked.append((self.command, path, self.headers.get("Range")))
            site.authorizations.add(self.headers.get("Authorization"))
            if site.authorization not in (None, self.headers.get("Authorization")):
                return self._send(401, b"who are you?", "text/plain")
            if site.failures:
                site.failures -= 1
                return self._send(503, b"busy", "text/plain")
            if path in site.redirects:
                return self._send(302, b"", "text/plain", {"Location": site.redirects[path]})
            if path.startswith(f"api/datasets/{REPO}/tree/{COMMIT}"):
                folder = path.removeprefix(f"api/datasets/{REPO}/tree/{COMMIT}").lstrip("/")
                listed = [listing(name) for name in site.files if name.rpartition("/")[0] == folder]
                return self._send(200, json.dumps(listed).encode(), "application/json")
            if path.startswith(f"api/datasets/{REPO}"):
                if path.endswith("/revision/absent"):
                    return self._send(404, b"{}", "application/json", {"X-Error-Code": "RevisionNotFound"})
                siblings = [listing(name) | {"rfilename": name} for name in site.files]
                info = {"id": REPO, "sha": COMMIT, "siblings": siblings, "cardData": site.card}
                return self._send(200, json.dumps(info).encode(), "application/json")
            if path.startswith("api/datasets/"):
                return self._send(404, b"{}", "application/json", {"X-Error-Code": "RepoNotFound"})
            name = path.removeprefix(f"datasets/{REPO}/resolve/{COMMIT}/")
            if name not in site.files:
                return self._send(404, b"no such file", "text/plain")
            self._file(site.files[name])

        def _file(self, data: bytes) -> None:
            headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            if site.etags:
                headers["ETag"] = etag
                if self.headers.get("If-None-Match") == etag:
                    return self._send(304, b"", "text/plain", headers)
            start, stop, status = 0, len(data), 200
            wanted = self.headers.get("Range")
            if wanted and self.headers.get("If-Range", etag) == etag:
                first, last = wanted.removeprefix("bytes=").split("-")
                start, status = int(first), 206
                stop = min(stop, int(last) + 1) if last else stop
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            self._send(status, data[start:stop], "application/octet-stream", headers)

        def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            length = {"Content-Length": str(len(body))} if site.lengths or status >= 300 else {"Connection": "close"}
            for name, value in {"Content-Type": kind, **length, **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if status in (200, 206) and site.cuts and kind == "application/octet-stream":
                body = body[: site.cuts.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def entry(name: str, data: bytes) -> dict[str, object]:
    """A file as the Hub lists it."""
    digest = hashlib.sha256(data).hexdigest()
    lfs = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 130}
    return {"type": "file", "path": name, "oid": digest[:40], "size": len(data), "lfs": lfs}
