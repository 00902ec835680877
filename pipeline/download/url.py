"""Source `url`: files behind http(s) addresses: resumed, checked, bounded.

What breaks off is tried again with growing pauses, and taken up where it stopped; a file counts only when whole.
"""

import hashlib
import json
import netrc
import os
import time
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from pipeline import console
from pipeline.documents.reading import ALLOWED, kind_of
from pipeline.download.source import File, Source, label, sha256
from pipeline.errors import UserError
from pipeline.params import secrets
from pipeline.params.download import Url

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
_DOWNLOADS = ".downloads"  # beside data/raw: outlives a broken run, so that the next one goes on from it


class Addresses(Source):
    def __init__(self, wanted: Url, folder: Path) -> None:
        super().__init__(wanted, folder)
        origins = ", ".join(wanted.urls)
        self.manifest = {"origin": origins, "licence": wanted.licence}
        self.description = origins
        self.card = f"files from {origins}" + (f", licence {wanted.licence}" if wanted.licence else "")

    def files(self) -> list[File]:
        return [self._fetched(number, url) for number, url in enumerate(self.wanted.urls)]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """What was fetched stays for the next try unless the documents are safe."""
        if kind:
            return
        for url in self.wanted.urls:
            for path in self._place(url).glob("*"):
                path.unlink()
            self._place(url).rmdir()
        if not any((self.folder / _DOWNLOADS).iterdir()):
            (self.folder / _DOWNLOADS).rmdir()

    def _fetched(self, number: int, url: str) -> File:
        name = PurePosixPath(httpx.URL(url).path).name
        if not kind_of(name)[0]:
            raise UserError(f"download.urls: {url}: unknown type of file; {ALLOWED}")
        expected = self.wanted.sha256[number].lower() if self.wanted.sha256 else None
        path = self._place(url) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (expected and path.exists() and sha256(path) == expected):
            _fetch(url, path, self.wanted.max_download_bytes, checked=expected is not None)
        file = self.on_disk(path, name, url, label(name, "download"))
        if expected and (found := file.entry["sha256"]) != expected:
            path.unlink()
            raise UserError(f"{url}: its sha256 is {found}, not {expected} (download.sha256); it was thrown away")
        known = _known(path)
        file.entry["revision"] = known.get("etag", "").strip('"') or known.get("modified")
        return file

    def _place(self, url: str) -> Path:
        return self.folder / _DOWNLOADS / hashlib.sha256(url.encode()).hexdigest()[:16]


def login(host: str) -> Any:
    """What proves who asks: the bearer token of MOE_TOKEN_HOST, else the login that ~/.netrc has for the host."""
    if token := os.environ.get(secrets.token_variable(host)):

        def with_token(request: httpx.Request) -> httpx.Request:
            request.headers["Authorization"] = f"Bearer {token}"
            return request

        return with_token
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return httpx.NetRCAuth(str(file)) if file.is_file() else None
    except netrc.NetrcParseError as error:
        raise UserError(f"{file}: {error.msg} (line {error.lineno})") from None


def _fetch(url: str, path: Path, max_bytes: int, checked: bool) -> None:
    part = path.with_name(path.name + ".part")
    for pause in (*PAUSES, None):
        try:
            return _fetch_rest(url, path, part, max_bytes, checked)
        except httpx.TooManyRedirects:
            raise UserError(f"{url}: the server sends it from one address to the next without end") from None
        except (httpx.TransportError, BrokenError) as error:
            if pause is None:
                have = (
                    f"{console.size(part.stat().st_size)} are kept for the next try" if part.exists() else "got nothing"
                )
                raise UserError(f"{url}: {words(error)}; gave up after {len(PAUSES) + 1} tries, {have}") from None
            console.warn(f"{url}: {words(error)}; trying again in {pause:g} s")
            time.sleep(pause)


def _fetch_rest(url: str, path: Path, part: Path, max_bytes: int, checked: bool) -> None:
    """Fetch what is missing of `part`, then rename it to `path`.

    What the server says of the version stands in a file beside it: a part of another version is begun anew, and a
    whole file that an earlier run left is taken only if the server still has that version.
    """
    known, host = _known(path), httpx.URL(url).host
    have = part.stat().st_size if part.exists() and _strong(known) else 0
    with httpx.stream(
        "GET", url, headers=_asking(path, known, have), auth=login(host), follow_redirects=True, timeout=30
    ) as answer:
        if answer.status_code == 304:
            return
        if answer.status_code == 416:
            part.unlink()
            raise BrokenError("the server has no such part of the file; starting over")
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise BrokenError(f"the server answered {answer.status_code}")
        if answer.status_code not in (200, 206):
            hint = f"; {secrets.instead(host)}" if answer.status_code in (401, 403) else ""
            raise UserError(f"{url}: the server answered {answer.status_code} {answer.reason_phrase}{hint}")
        path.unlink(missing_ok=True)
        have = have if answer.status_code == 206 else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        if total is None and "Transfer-Encoding" not in answer.headers and not checked:
            console.warn(
                f"{url}: the server does not say how long it is, so a file cut short would look whole; "
                "give its sha256 (download.sha256) to be sure"
            )
        said = {"etag": answer.headers.get("ETag", ""), "modified": answer.headers.get("Last-Modified")}
        _state(path).write_text(json.dumps(said))
        with (
            part.open("ab" if have else "wb") as out,
            console.progress(f"fetch {path.name}", total, "bytes") as advance,
        ):
            advance(have)
            for block in answer.iter_raw():  # as it arrives: what waits in a larger block is lost with the connection
                have += len(block)
                if have > max_bytes or (total or 0) > max_bytes:
                    break
                out.write(block)
                advance(len(block))
    if max(have, total or 0) > max_bytes:
        part.unlink()
        size = console.size(total) if total else f"more than {console.size(max_bytes)}"
        raise UserError(f"{url}: {size}; download.max_download_bytes allows {console.size(max_bytes)}")
    if total is not None and have < total:
        raise BrokenError(f"the connection ended after {have:,} of {total:,} bytes")
    part.rename(path)


def _asking(path: Path, known: dict[str, Any], have: int) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    if path.exists():
        headers |= {"If-None-Match": known["etag"]} if known.get("etag") else {}
        headers |= {"If-Modified-Since": known["modified"]} if known.get("modified") else {}
    elif have:
        headers |= {"Range": f"bytes={have}-", "If-Range": known["etag"]}
    return headers


def _strong(known: dict[str, Any]) -> bool:
    """Whether the version is known to the byte; without that, a part cannot be continued."""
    return bool(known.get("etag")) and not known["etag"].startswith("W/")


def _state(path: Path) -> Path:
    return path.with_name(path.name + ".state")


def _known(path: Path) -> dict[str, Any]:
    return json.loads(_state(path).read_text()) if _state(path).exists() else {}


class BrokenError(Exception):
    """A transfer that may succeed when tried again."""


def words(error: Exception) -> str:
    said = f"no connection ({error})" if isinstance(error, httpx.ConnectError) else str(error) or type(error).__name__
    return secrets.redacted(said)  # a redirection may lead to a signed address
