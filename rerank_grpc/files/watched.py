"""A small file that is read again when its content changes."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from rerank_grpc.errors import describe
from rerank_grpc.files.obstacles import obstacle
from rerank_grpc.units import in_bytes

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
MOST_BYTES = 1 << 20


class WatchedFile:
    """A file of tokens or a certificate, whose new content is handed to `take`, on a thread of its own.

    A content counts once two looks in a row have found it, so none is taken that is being written. Each look
    reads the file, because no time or number of a file tells for certain that it is the same: file systems
    round times, and a link may lead elsewhere. `take` raises ValueError with an objection to a content; the
    one before then stays in force, as it does where the file cannot be read, and one line of the log says so.
    An error of any other kind is told in one line too, and the next look tries again.
    """

    def __init__(self, path: Path, take: Callable[[bytes], None]) -> None:
        self._path = path
        self._take = take
        self._key = secrets.token_bytes(32)  # contents are secret, and kept as keyed digests
        self._seen: object = None  # what the last look found: a digest, or an objection
        self._settled: object = None  # what was acted upon
        self._objection = ""  # what the log has been told last; empty while all is well
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to look; a pipe or a device gives its content once, and is not watched."""
        try:
            kind = stat.S_IFMT(self._path.stat().st_mode)
        except OSError:  # it is being replaced
            kind = stat.S_IFREG
        if kind in (stat.S_IFREG, stat.S_IFDIR):
            self._thread = threading.Thread(target=self._watch, name="watched-file", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Looks no more; does not wait for a file system that hangs."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(LOOK_SECONDS)

    def look(self) -> None:
        """Reads the file, and takes a content that the last look has found too."""
        content, objection = self._read()
        found: object = objection or hashlib.blake2b(content, key=self._key).digest()
        if found != self._seen:
            self._seen = found
        elif found != self._settled:
            self._settle(content, objection)
            self._settled = found

    def _settle(self, content: bytes, objection: str) -> None:
        if not objection:
            try:
                self._take(content)
            except ValueError as error:
                objection = str(error)
        if objection:
            self._object(objection)
            return
        if self._objection:
            fields = {"event": "file_well", "path": str(self._path)}
            log.info("%s is read again", self._path, extra=fields)
        self._objection = ""

    def _object(self, objection: str) -> None:
        """Logs an objection, once."""
        if objection != self._objection:
            text = "%s is not read again, and what it held before stays in force: %s"
            fields = {"event": "file_refused", "path": str(self._path), "error": objection}
            log.warning(text, self._path, objection, extra=fields)
        self._objection = objection

    def _read(self) -> tuple[bytes, str]:
        """Reads the content, or an objection to it."""
        try:
            with open(self._path, "rb", opener=without_waiting) as file:
                content = file.read(MOST_BYTES + 1) or b""
        except OSError as error:
            return b"", obstacle(self._path, error)
        return content, "" if len(content) <= MOST_BYTES else f"it has more than {in_bytes(MOST_BYTES)}"

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception as error:  # without this thread no content would ever be taken again
                self._settled = None  # whatever is there next is taken, so that the log tells that it is well
                self._object(describe(error))


def without_waiting(path: str, flags: int) -> int:
    """Opens a file; a pipe that has taken its place would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)
