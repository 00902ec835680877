"""What files are packed in: .gz and .zst streams, .zip and .tar archives. A part that is missing is always an error.

for name, stream in members(".tar", unpacked(packed, ".gz")): ...
"""

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any, cast

import zstandard

from pipeline.documents.decoding import CHUNK, peekable
from pipeline.errors import UserError


def unpacked(stream: IO[bytes], packing: str) -> IO[bytes]:
    """packing: '.gz', '.zst' or '' for none."""
    if packing == ".gz":
        if not peekable(stream).peek(1):
            raise EOFError("not even gzip's header is there")
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    return io.BufferedReader(_Zstd(stream), CHUNK) if packing == ".zst" else stream


def members(form: str, stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file of an archive, in order; each is read before the next is asked for.

    Raises UserError for a link, a path that climbs out and an encrypted file, which the whole archive is refused for.
    """
    for name, inner in (_zip if form == ".zip" else _tar)(stream):
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
            raise UserError(f"{name}: a path that climbs out of its archive; the archive is refused")
        with inner:
            yield name, inner


def _zip(stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(stream) as archive:
        found = archive.infolist()
        stream.seek(0)
        if stream.read(4) == b"PK\x03\x04" and min((member.header_offset for member in found), default=1):
            raise UserError(
                "it contains files that its directory does not list, as two archives joined into one do; unpack it"
            )
        for member in found:
            if member.flag_bits & 1:
                raise UserError(f"{member.filename} is encrypted; unpack the archive and give the folder")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _link(member.filename)
            if not member.is_dir():
                yield member.filename, archive.open(member)


def _tar(stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    # ignore_zeros: go on after the end of the first of several archives
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member, ignore_zeros=True) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore  # or it would keep them all
            if member.issym() or member.islnk():
                raise _link(member.name)
            if (inner := archive.extractfile(member) if member.isfile() else None) is not None:
                yield member.name, inner


def _link(name: str) -> UserError:
    return UserError(f"{name} is a link; links in an archive are refused: unpack it and give the folder")


class _Member(tarfile.TarInfo):
    """Where tarfile takes a damaged header, or an end that is missing, for the end of the archive, this raises."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        try:
            member = super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore
            archive.ended = True
            raise
        except tarfile.HeaderError as error:  # type: ignore
            if isinstance(error, tarfile.EmptyHeaderError) and getattr(archive, "ended", False):  # type: ignore
                raise
            raise EOFError(f"the tar archive has no end, or a damaged header: {error}") from None
        archive.ended = False
        return member


class _Zstd(io.RawIOBase):
    """Zstandard as a stream that notices a missing end, which zstandard's own reader takes for the end."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed, self._frame, self._ready = packed, self._new_frame(), b""

    @staticmethod
    def _new_frame() -> Any:
        return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()  # as `zstd --long=31` needs it

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._frame.unused_data if self._frame.eof else b""
            block = block or self._packed.read(CHUNK // 8)
            if not block:
                if not self._frame.eof:
                    raise EOFError("the zstd frame has no end")
                return 0
            if self._frame.eof:
                self._frame = self._new_frame()
            self._ready = self._frame.decompress(block)
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n
