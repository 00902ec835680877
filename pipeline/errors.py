"""Failures in words: the exception for a mistake that the user can mend, and what a machine's refusals are called."""

import errno
import shutil
from pathlib import Path

_LEAST_FREE = 2**20  # bytes; below this a library that says little has met a full disk
_REFUSED = {
    errno.ENOSPC: "the disk is full; free some space, then run the command again",
    errno.EDQUOT: "your disk quota is used up; free some space, then run the command again",
    errno.EROFS: "the file system is read-only; make it writable, or run in another folder",
    errno.EACCES: "permission denied; check the owner and the mode of the file and its folder",
    errno.EPERM: "permission denied; check the owner and the mode of the file and its folder",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.EIO: "the disk failed to read or write; check the hardware",
    errno.ESTALE: "the network file system lost the file; run the command again",
}


class UserError(Exception):
    """What is wrong (the file or field and its value), what is allowed and what to do, in words.

    Every command turns it into exit code 2. Anything else that is raised is a defect of the project and keeps its
    traceback, unless `refusal` has words for it.
    """


def refusal(error: BaseException) -> str | None:
    """What the machine refused (a full disk, a read-only folder, …), in words; None where it is something else.

    Libraries wrap what the system said, or say nothing of it, so the whole chain is searched, then the disk asked.
    """
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in _REFUSED:
            where = f"{chain.filename}: " if chain.filename else ""
            return f"{where}{_REFUSED[chain.errno]}"
        if "No space left on device" in str(chain):
            return _REFUSED[errno.ENOSPC]
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, Exception) and shutil.disk_usage(Path()).free < _LEAST_FREE:
        return _REFUSED[errno.ENOSPC]
    return None
