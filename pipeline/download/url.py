"""Source `url`: files behind http(s) addresses: resumed, checked, bounded.

What breaks off is tried again with growing pauses, and taken up where it stopped; a file counts only when whole.
"""

import hashlib
import json
import re
import time
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from pipeline import console
from pipeline.documents.reading import ALLOWED, kind_of
from pipeline.download.source import File, Source, label, sha256
from pipeline.errors import UserError
from pipeline.params.download import Url

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
_DOWNLOADS = ".downloads"  # beside data/raw: outlives a broken run, so that the next one goes on from it
_SECRET = re.compile(r"key|token|secret|signature|credential|password|^sig$", re.IGNORECASE)


class Addresses(Source):
    def __init__(self, wanted: Url, folder: Path) -> None:
        super().__init__(wanted, folder)
        origins = ", ".join(without_secrets(url) for url in wanted.urls)
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
        origin = without_secrets(url)
        name = PurePosixPath(httpx.URL(url).path).name
        if not kind_of(name)[0]:
            raise UserError(f"download.urls: {origin}: unknown type of file; {ALLOWED}")
        expected = self.wanted.sha256[number].lower() if self.wanted.sha256 else None
        path = self._place(url) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (expected and path.exists() and sha256(path) == expected):
            _fetch(url, path, self.wanted.max_download_bytes, checked=expected is not None)
        file = self.on_disk(path, name, origin, label(name, "download"))
        if expected and (found := file.entry["sha256"]) != expected:
            path.unlink()
            raise UserError(f"{origin}: its sha256 is {found}, not {expected} (download.sha256); it was thrown away")
        known = _known(path)
        file.entry["revision"] = known.get("etag", "").strip('"') or known.get("modified")
        return file

    def _place(self, url: str) -> Path:
        return self.folder / _DOWNLOADS / hashlib.sha256(url.encode()).hexdigest()[:16]


def without_secrets(url: str) -> str:
    """The address without a login and without the values of keys and signatures, fit for a manifest or a message."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UserError(f"download.urls: {url!r} is no address ({error})") from None
    if parsed.userinfo:
        parsed = parsed.copy_with(username=None, password=None)
    if any(_SECRET.search(name) for name in parsed.params):
        parsed = parsed.copy_with(params={n: "***" if _SECRET.search(n) else v for n, v in parsed.params.items()})
    return str(parsed)


def _fetch(url: str, path: Path, max_bytes: int, checked: bool) -> None:
    part, origin = path.with_name(path.name + ".part"), without_secrets(url)
    for pause in (*PAUSES, None):
        try:
            return _fetch_rest(url, path, part, max_bytes, checked)
        except httpx.TooManyRedirects:
            raise UserError(f"{origin}: the server sends it from one address to the next without end") from None
        except (httpx.TransportError, BrokenError) as error:
            if pause is None:
                have = (
                    f"{console.size(part.stat().st_size)} are kept for the next try" if part.exists() else "got nothing"
                )
                raise UserError(f"{origin}: {words(error)}; gave up after {len(PAUSES) + 1} tries, {have}") from None
            console.warn(f"{origin}: {words(error)}; trying again in {pause:g} s")
            time.sleep(pause)


def _fetch_rest(url: str, path: Path, part: Path, max_bytes: int, checked: bool) -> None:
    """Fetch what is missing of `part`, then rename it to `path`.

    What the server says of the version stands in a file beside it: a part of another version is begun anew, and a
    whole file that an earlier run left is taken only if the server still has that version.
    """
    known, origin = _known(path), without_secrets(url)
    have = part.stat().st_size if part.exists() and _strong(known) else 0
    with httpx.stream("GET", url, headers=_asking(path, known, have), follow_redirects=True, timeout=30) as answer:
        if answer.status_code == 304:
            return
        if answer.status_code == 416:
            part.unlink()
            raise BrokenError("the server has no such part of the file; starting over")
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise BrokenError(f"the server answered {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise UserError(f"{origin}: the server answered {answer.status_code} {answer.reason_phrase}")
        path.unlink(missing_ok=True)
        have = have if answer.status_code == 206 else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        if total is None and "Transfer-Encoding" not in answer.headers and not checked:
            console.warn(
                f"{origin}: the server does not say how long it is, so a file cut short would look whole; "
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
        raise UserError(f"{origin}: {size}; download.max_download_bytes allows {console.size(max_bytes)}")
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
    return f"no connection ({error})" if isinstance(error, httpx.ConnectError) else str(error) or type(error).__name__
