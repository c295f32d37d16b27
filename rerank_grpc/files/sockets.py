"""Unix sockets to listen on: one that is left over is replaced, and a living server's is not."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rerank_grpc.files.obstacles import obstacle

SCHEME = "unix:"
MODE = 0o660  # the server's user and group may call
_MOST_BYTES = 107  # sun_path has 108, of which the last is 0
_LOOK_SECONDS = 1.0


class OwnSocket:
    """A socket's file that this process has made, and removes if it is still its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        made = path.stat()
        self._id = made.st_dev, made.st_ino

    def remove(self) -> None:
        """Removes the file, unless another has taken its place."""
        with suppress(OSError):
            found = self._path.stat()
            if (found.st_dev, found.st_ino) == self._id:
                self._path.unlink()


def socket_path(host: str) -> Path | None:
    """Returns the path of a host such as unix:/run/rerank.sock; None where that is an address."""
    if not host.startswith(SCHEME):
        return None
    path = host.removeprefix(SCHEME)
    return Path(f"/{path.lstrip('/')}") if path.startswith("///") else Path(path)


@contextmanager
def making_room(path: Path) -> Iterator[None]:
    """Prepares a path for a socket, which the block binds with MODE; raises ValueError with an objection."""
    if len(os.fsencode(path)) > _MOST_BYTES:
        raise ValueError(f"a socket's path has at most {_MOST_BYTES} bytes: choose a shorter one")
    try:
        _remove_leftover(path)
        before = os.umask(0o777 & ~MODE)  # a chmod afterwards would leave it open to all for a moment
        try:
            yield
        finally:
            os.umask(before)
    except OSError as error:
        folder = path.parent
        if error.errno == errno.EADDRINUSE:
            raise ValueError("another process has taken it: choose another path") from None
        where = "" if folder.is_dir() else f"the folder {folder}: "
        raise ValueError(f"{where}{obstacle(folder, error, writing=True)}") from None


def _remove_leftover(path: Path) -> None:
    """Removes the socket of a process that has ended; raises ValueError for any other file."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        os.stat(path.parent)
        return
    if not stat.S_ISSOCK(kind):
        raise ValueError("there is a file that is no socket: choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(_LOOK_SECONDS)
        try:
            caller.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except (BlockingIOError, TimeoutError):
            pass  # its queue is full: it lives
    raise ValueError("a server listens there: choose another path, or stop that server")
