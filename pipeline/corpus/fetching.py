"""Files from the network: addresses (resumed, checked, bounded) and data sets of the Hugging Face Hub.

    for url, path in urls(params.download, Path("data")): ...
    hub = Hub(params.download, sampled=False)
    for file in hub.files("data/train-*.parquet"): ...

What breaks off is tried again with growing pauses, and taken up where it stopped; a file counts only when whole.
"""

import fnmatch
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar, cast

import httpx
import huggingface_hub
from huggingface_hub import errors

from pipeline import console
from pipeline.corpus.reading import ALLOWED, kind_of
from pipeline.errors import UserError
from pipeline.params import HuggingFace, Url

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further try
_DOWNLOADS = ".downloads"  # beside data/raw: outlives a broken run, so that the next one goes on from it
_STREAM_BLOCK = 8 * 2**20  # of a Hub file read in part
T = TypeVar("T")


# --- addresses --------------------------------------------------------------------------------------------------------


def urls(params: Url, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (address, path of the whole file) for each of params.urls; the files lie under `folder`."""
    for number, url in enumerate(params.urls):
        name = PurePosixPath(httpx.URL(url).path).name
        if not kind_of(name)[0]:
            raise UserError(f"download.urls: {url}: unknown type of file; {ALLOWED}")
        path = _place(url, folder) / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(url, path, params.max_download_bytes)
        expected = params.sha256[number].lower() if params.sha256 else None
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if expected and found != expected:
            path.unlink()
            raise UserError(f"{url}: its sha256 is {found}, not {expected} (download.sha256); it was thrown away")
        yield url, path


def forget(addresses: list[str], folder: Path) -> None:
    """Delete the fetched files of addresses whose documents are safe."""
    for url in addresses:
        for path in _place(url, folder).glob("*"):
            path.unlink()
        _place(url, folder).rmdir()
    if not any((folder / _DOWNLOADS).iterdir()):
        (folder / _DOWNLOADS).rmdir()


def _place(url: str, folder: Path) -> Path:
    return folder / _DOWNLOADS / hashlib.sha256(url.encode()).hexdigest()[:16]


def _fetch(url: str, path: Path, max_bytes: int) -> None:
    part, state = path.with_name(path.name + ".part"), path.with_name(path.name + ".state")
    for pause in (*PAUSES, None):
        try:
            _fetch_rest(url, part, state, max_bytes)
            break
        except (httpx.TransportError, _BrokenError) as error:
            if pause is None:
                have = (
                    f"{console.size(part.stat().st_size)} are kept for the next try" if part.exists() else "got nothing"
                )
                raise UserError(f"{url}: {_words(error)}; gave up after {len(PAUSES) + 1} tries, {have}") from None
            console.warn(f"{url}: {_words(error)}; trying again in {pause:g} s")
            time.sleep(pause)
    state.unlink(missing_ok=True)
    part.rename(path)


def _fetch_rest(url: str, part: Path, state: Path, max_bytes: int) -> None:
    """Fetch what is missing of `part`. A file that changed meanwhile (its ETag is in `state`) is begun anew."""
    have = part.stat().st_size if part.exists() and state.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": json.loads(state.read_text())["etag"]}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as answer:
        if answer.status_code == 416:
            part.unlink()
            raise _BrokenError("the server has no such part of the file; starting over")
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise _BrokenError(f"the server answered {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise UserError(f"{url}: the server answered {answer.status_code} {answer.reason_phrase}")
        have = have if answer.status_code == 206 else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        etag = answer.headers.get("ETag", "")
        if etag and not etag.startswith("W/"):
            state.write_text(json.dumps({"etag": etag}))
        else:
            state.unlink(missing_ok=True)  # nothing tells whether the file stays the same: no resuming
        what = f"fetch {PurePosixPath(part.name).stem}"
        with part.open("ab" if have else "wb") as out, console.progress(what, total, "bytes") as advance:
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
        raise _BrokenError(f"the connection ended after {have:,} of {total:,} bytes")


class _BrokenError(Exception):
    """A transfer that may succeed when tried again."""


def _words(error: Exception) -> str:
    return f"no connection ({error})" if isinstance(error, httpx.ConnectError) else str(error) or type(error).__name__


# --- Hugging Face Hub -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubFile:
    name: str
    origin: str
    open: Callable[[], AbstractContextManager[IO[bytes]]]
    checked: dict[str, Any]  # bytes, and the sha256 where the Hub gives it


class Hub:
    """One data set at one commit. `sampled`: only part will be read, so files are streamed and not fetched whole."""

    def __init__(self, params: HuggingFace, sampled: bool) -> None:
        self._params, self._sampled = params, sampled
        info = self._asked(
            partial(
                huggingface_hub.HfApi().dataset_info, str(params.repo), revision=params.revision, files_metadata=True
            )
        )
        self.commit = str(info.sha)
        self._siblings = sorted(info.siblings or [], key=lambda sibling: sibling.rfilename)

    def files(self, pattern: str) -> Iterator[HubFile]:
        """The files whose path matches the glob (below the folder `config`, when that is given)."""
        repo, prefix = self._params.repo, f"{self._params.config}/" if self._params.config else ""
        patterns = (prefix + pattern, prefix + pattern.removeprefix("**/"))
        found = [s for s in self._siblings if any(fnmatch.fnmatchcase(s.rfilename, p) for p in patterns)]
        found = [s for s in found if kind_of(s.rfilename)[0]]
        if not found:
            known = ", ".join(s.rfilename for s in self._siblings[:20])
            raise UserError(
                f"download.splits: no file of a known type in {repo} matches {prefix + pattern!r}; it holds {known}"
            )
        for sibling in found:
            checked = {"bytes": sibling.size} | ({"sha256": sibling.lfs.sha256} if sibling.lfs else {})
            origin = f"hf://datasets/{repo}@{self.commit}/{sibling.rfilename}"
            yield HubFile(sibling.rfilename, origin, partial(self._open, sibling.rfilename, checked), checked)

    def _open(self, name: str, checked: dict[str, Any]) -> AbstractContextManager[IO[bytes]]:
        repo = str(self._params.repo)
        if self._sampled:
            system = huggingface_hub.HfFileSystem()
            path = f"datasets/{repo}@{self.commit}/{name}"
            opened = self._asked(lambda: system.open(path, "rb", block_size=_STREAM_BLOCK))
            return cast(AbstractContextManager[IO[bytes]], opened)
        fetch = partial(huggingface_hub.hf_hub_download, repo, name, repo_type="dataset", revision=self.commit)
        whole = Path(self._asked(fetch))
        with whole.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if checked.setdefault("sha256", digest) != digest:
            raise UserError(f"{repo}/{name}: its sha256 is {digest}, the Hub gives {checked['sha256']}; delete {whole}")
        return whole.open("rb")

    def _asked(self, ask: Callable[[], T]) -> T:
        """Ask the Hub, again after a pause when it fails in a way that may pass; other failures in words."""
        repo, revision = self._params.repo, self._params.revision
        for pause in (*PAUSES, None):
            try:
                return ask()
            except errors.GatedRepoError:
                raise UserError(f"{repo}: ask for access on its page, then set HF_TOKEN") from None
            except errors.RevisionNotFoundError:
                raise UserError(f"download.revision = {revision!r}: {repo} has no such commit, tag or branch") from None
            except errors.RepositoryNotFoundError:
                raise UserError(f"download.repo = {repo!r}: no such data set (a private one needs HF_TOKEN)") from None
            except errors.OfflineModeIsEnabled:
                raise UserError(f"{repo}: HF_HUB_OFFLINE is set; unset it, or take download=bundled or local") from None
            except (httpx.TransportError, errors.LocalEntryNotFoundError, errors.HfHubHTTPError) as error:
                status = getattr(getattr(error, "response", None), "status_code", 500)
                if pause is None or (status < 500 and status not in (408, 429)):
                    raise UserError(
                        f"{repo}: the Hugging Face Hub did not answer ({_words(error)}); "
                        "check the network, or take download=bundled or download=local"
                    ) from None
                console.warn(f"{repo}: {_words(error)}; trying again in {pause:g} s")
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")
