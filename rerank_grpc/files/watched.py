"""Small files that are read again when their content changes."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rerank_grpc.errors import describe
from rerank_grpc.files.obstacles import MOST_BYTES, Unfinished, obstacle
from rerank_grpc.units import in_bytes

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
# Files that are replaced one after the other, by programs or by hand, are all there by then.
UNFINISHED_SECONDS = 10.0


class WatchedFiles:
    """Files that belong together, whose new contents are handed to `take`, on a thread of its own.

    Contents count once two looks in a row have found them, so none is taken that is being written. Each look
    reads the files, because no time or number of a file tells for certain that it is the same: file systems
    round times, and a link may lead elsewhere. `take` raises ValueError with an objection to the contents;
    those before then stay in force, as they do where a file cannot be read, and one line of the log says so:
    at once, but for Unfinished after UNFINISHED_SECONDS only. `on_object` hears of each such line. An error
    of any other kind is told in one line too, and the next look tries again.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        take: Callable[[Sequence[bytes]], None],
        on_object: Callable[[], None] = lambda: None,
    ) -> None:
        self._paths = paths
        self._name = " and ".join(map(str, paths))
        self._take = take
        self._on_object = on_object
        self._key = secrets.token_bytes(32)  # contents are secret, and kept as keyed digests
        self._seen: object = None  # what the last look found: digests, or an objection
        self._since = 0.0  # when that was found first
        self._settled: object = None  # what was acted upon
        self._objection = ""  # what the log has been told last; empty while all is well
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to look; a pipe or a device gives its content once, and is not watched."""
        if all(map(_can_be_read_again, self._paths)):
            self._thread = threading.Thread(target=self._watch, name="watched-file", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Looks no more; does not wait for a file system that hangs."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(LOOK_SECONDS)

    def look(self) -> None:
        """Reads the files, and takes contents that the last look has found too."""
        contents, objection = self._read()
        found: object = objection or [self._digest(content) for content in contents]
        if found != self._seen:
            self._seen, self._since = found, time.monotonic()
        elif found != self._settled and self._settle(contents, objection):
            self._settled = found

    def _digest(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, key=self._key).digest()

    def _settle(self, contents: Sequence[bytes], objection: str) -> bool:
        """Takes contents, or objects to them; False while they may still become whole."""
        if not objection:
            try:
                self._take(contents)
            except Unfinished as error:
                if time.monotonic() < self._since + UNFINISHED_SECONDS:
                    return False
                objection = str(error)
            except ValueError as error:
                objection = str(error)
        if objection:
            self._object(objection)
            return True
        if self._objection:
            fields = {"event": "file_well", "path": self._name}
            log.info("%s is read again", self._name, extra=fields)
        self._objection = ""
        return True

    def _object(self, objection: str) -> None:
        """Logs an objection, once."""
        if objection != self._objection:
            text = "%s is not read again, and what it held before stays in force: %s"
            fields = {"event": "file_refused", "path": self._name, "error": objection}
            log.warning(text, self._name, objection, extra=fields)
            self._on_object()
        self._objection = objection

    def _read(self) -> tuple[Sequence[bytes], str]:
        """Reads the contents, or an objection to one."""
        contents = []
        for path in self._paths:
            which = f"{path}: " if len(self._paths) > 1 else ""
            try:
                with open(path, "rb", opener=without_waiting) as file:
                    content = file.read(MOST_BYTES + 1) or b""
            except OSError as error:
                return (), which + obstacle(path, error)
            if len(content) > MOST_BYTES:
                return (), f"{which}it has more than {in_bytes(MOST_BYTES)}"
            contents.append(content)
        return contents, ""

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception as error:  # without this thread no content would ever be taken again
                self._settled = None  # whatever is there next is taken, so that the log tells that it is well
                self._object(describe(error))


class WatchedFile(WatchedFiles):
    """One file of WatchedFiles, whose content `take` gets."""

    def __init__(self, path: Path, take: Callable[[bytes], None]) -> None:
        super().__init__([path], lambda contents: take(contents[0]))


def _can_be_read_again(path: Path) -> bool:
    try:
        return stat.S_IFMT(path.stat().st_mode) in (stat.S_IFREG, stat.S_IFDIR)
    except OSError:  # it is being replaced
        return True


def without_waiting(path: str, flags: int) -> int:
    """Opens a file; a pipe that has taken its place would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)
