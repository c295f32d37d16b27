"""Why a file cannot be read, listed, written or used yet: the mode, the owner, the user, and the remedy."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MOST_BYTES = 1 << 20  # of a file with certificates, keys or tokens
_EFFECTIVE = os.access in os.supports_effective_ids
_REMEDIES = {
    errno.EMFILE: "the process has too many files open: raise `ulimit -n`",
    errno.ENFILE: "the machine has too many files open: raise fs.file-max",
    errno.ENOSPC: "the disk is full: free some of it",
    errno.EDQUOT: "the user's share of the disk is full: free some of it",
    errno.EROFS: "the file system is read-only: name another place, or mount it to be written to",
    errno.EIO: "the disk or the mount has failed: see the kernel's log, and mount it anew",
    errno.ESTALE: "the mount has lost the file: mount it anew",
    errno.ENAMETOOLONG: "the name is too long: check it",
}


class Unfinished(ValueError):
    """An objection to contents that seem to be on their way, such as a certificate without its new key."""


def obstacle(path: str | os.PathLike[str], error: OSError, *, writing: bool = False) -> str:
    """Says in a part of a line what an operation on a file or folder failed by, and what to do.

    The caller's line names `path` itself; a folder above it that is in the way is named here.
    """
    path = Path(path)
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return _refused(path, "w" if writing else "r")
        case errno.ENOENT:
            return _missing(path)
        case errno.ELOOP:
            return "is a link that leads back to itself: point it at the file"
        case errno.EISDIR:
            return "is a directory where a file is expected: name a file in it"
        case errno.ENOTDIR:
            return "lies below a file, or is a file where a directory is expected: check the path"
        case number:
            text = error.strerror or type(error).__name__
            return _REMEDIES.get(number or 0, f"{text}: check the path")


def cause(error: OSError) -> str:
    """Says what failed, and what to do where that is known, of an error without a path."""
    text = _REMEDIES.get(error.errno or 0) or error.strerror or str(error) or "it gives no reason"
    return " ".join(text.split())


def owned(path: Path) -> str:
    """Tells a file's mode and owner, and the user that this process runs as, as numbers."""
    found = path.stat()
    kind = "directory" if stat.S_ISDIR(found.st_mode) else "file"
    mode = stat.S_IMODE(found.st_mode)
    process = f"this process runs as {os.geteuid()}:{os.getegid()}"
    return f"the {kind} has mode {mode:04o} and belongs to {found.st_uid}:{found.st_gid}, and {process}"


def _refused(path: Path, bit: str) -> str:
    """Finds what refuses: a folder on the way that may not be entered, or the file or folder itself."""
    for folder in reversed(_real(path).parents):
        try:
            if not os.access(folder, os.X_OK, effective_ids=_EFFECTIVE):
                return f"permission denied: {folder} may not be entered: {owned(folder)}: {_remedy('x')}"
        except OSError:  # it lies in a folder that may not be entered
            break
    try:
        # A file that is not there yet is written into its folder.
        there = path if path.exists() else path.parent
        return f"permission denied: {owned(there)}: {_remedy(bit + 'x' * there.is_dir())}"
    except OSError:
        return f"permission denied, for the user {os.geteuid()}:{os.getegid()}: {_remedy(bit)}"


def _remedy(bits: str) -> str:
    # Of all users' it may be a secret.
    user, group = os.geteuid(), os.getegid()
    return f"let it by chown {user}, or by chgrp {group} and chmod g+{bits}, in Kubernetes by fsGroup"


def _real(path: Path) -> Path:
    """Follows links as far as they can be followed."""
    return Path(os.path.realpath(path))


def _missing(path: Path) -> str:
    try:
        return f"is a link to {os.readlink(path)}, which is not there: mount or copy that too"
    except OSError:  # no link, or one that has gone meanwhile
        return "no such file or directory: check the path"
