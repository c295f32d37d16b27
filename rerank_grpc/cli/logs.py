"""The log of a server: one line a record on stderr, for which no caller waits."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TextIO

DELAY_SECONDS, CLOSE_SECONDS = 0.1, 1.0
MAX_RECORDS = 10_000  # a hundred milliseconds of the busiest server are some hundred records
MAX_WAITING = 1 << 20  # lines that wait for their reader, in characters

MAX_LINES = 10  # lines of one kind in one window; a record with a traceback counts as all of them
WINDOW_SECONDS, MAX_WINDOW_SECONDS = 1.0, 10.0  # doubled while lines are dropped, up to the maximum
MAX_KINDS = 256  # kinds beyond these share one window
EXAMPLE_CHARACTERS = 200  # a count quotes this much of the first line that it stands for


class BackgroundHandler(logging.Handler):
    """Passes lines in their order to `write`, which may block for ever; nothing else here blocks.

    An ordinary handler writes under a lock on the thread that answers the call: all calls would wait for a
    reader that has stopped reading. Here a caller only appends a record; one thread makes lines of them, and
    only a second one waits for a full pipe, a slow disk or a stopped terminal. Records, lines and repeats are
    bounded; the dropped ones are counted.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__()
        self._write = write
        self._arrived: deque[logging.LogRecord | str] = deque()
        # A SimpleQueue may be put to by a signal handler or a finalizer that interrupts a put.
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self._texts: SimpleQueue[str | None] = SimpleQueue()
        # Characters, each changed by one thread only; their difference waits to be written.
        self._passed_on, self._written = 0, 0
        self._dropped = 0  # callers add to it without a lock: among thousands, one may be missed
        self._unfinished = False  # whether the last text ended without a newline, as progress does
        self._repeats = Repeats()
        self._ending = False
        self._formatter = threading.Thread(target=self._pass_on, name="log", daemon=True)
        self._writer = threading.Thread(target=self._write_all, name="log-writer", daemon=True)
        self._formatter.start()
        self._writer.start()

    def createLock(self) -> None:
        self.lock = None  # a deque's append needs none

    def emit(self, record: logging.LogRecord) -> None:
        """Appends a record; a warning or worse is written at once."""
        self._append(record)
        if record.levelno >= logging.WARNING:
            self.flush()

    def write(self, text: str) -> None:
        """Appends a text as it is; without a newline at its end, the next text replaces it."""
        self._append(text)
        self.flush()

    def say(self, *lines: str) -> None:
        """Appends whole lines as they are."""
        self.write("".join(f"{line}\n" for line in lines))

    def flush(self) -> None:
        """Wakes the threads, and does not wait for them."""
        if self._wakeups.empty():
            self._wakeups.put(None)

    def close(self) -> None:
        """Ends the threads once all is written, or leaves them behind after a second."""
        self._ending = True
        self.flush()
        end = time.monotonic() + CLOSE_SECONDS
        self._formatter.join(CLOSE_SECONDS)
        self._writer.join(max(end - time.monotonic(), 0.0))
        super().close()

    def _append(self, item: logging.LogRecord | str) -> None:
        if len(self._arrived) < MAX_RECORDS:
            self._arrived.append(item)
        else:
            self._dropped += 1

    # On the thread that makes lines

    def _pass_on(self) -> None:
        ending = False
        while not ending:
            with suppress(Empty):
                self._wakeups.get(timeout=DELAY_SECONDS)
            ending = self._ending  # read first: a record before `close` is in this turn
            text = "".join(self._lines(time.monotonic(), ending))
            if text:
                self._passed_on += len(text)
                self._texts.put(text)
        self._texts.put(None)

    def _lines(self, now: float, ending: bool) -> Iterable[str]:
        """Makes lines of all that has arrived, without those beyond the bound."""
        free = MAX_WAITING - (self._passed_on - self._written)
        for text in self._admitted(now, ending, told=free > MAX_WAITING // 2):
            if self._unfinished:
                text = "\r\x1b[2K" + text  # the cursor to the start of its line, which is emptied
            if len(text) > free:
                self._dropped += 1
                continue
            free -= len(text)
            self._unfinished = not text.endswith("\n")
            yield text

    def _admitted(self, now: float, ending: bool, *, told: bool) -> Iterable[str]:
        """Yields each text and line; `told` says first how many were dropped."""
        if told and self._dropped:
            dropped, self._dropped = self._dropped, 0
            yield self._line(_record(__name__, "%s lines were dropped: they came faster than read", dropped))
        while self._arrived:
            item = self._arrived.popleft()
            if isinstance(item, str):
                yield item
            elif self._repeats.admits(item, now):
                yield self._line(item)
        yield from map(self._line, self._repeats.counts(now, ending=ending))

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record) + "\n"
        except Exception as error:
            # The arguments are left out: only the template is sure to quote no caller.
            text = "a line could not be formatted (%s): %s"
            return self.format(_record(record.name, text, type(error).__name__, _template_of(record))) + "\n"

    # On the thread that writes

    def _write_all(self) -> None:
        while (text := self._texts.get()) is not None:
            with suppress(OSError):  # the reader has left, or the disk is full; the service goes on
                self._write(text)
            self._written += len(text)


@dataclass(slots=True)
class _Window:
    """The written and dropped lines of one kind since `begin`."""

    begin: float
    seconds: float = WINDOW_SECONDS
    written: int = 0
    dropped: int = 0
    name: str = ""
    level: int = logging.WARNING
    example: str = ""


class Repeats:
    """Admits the first lines of each kind in a window, and counts the others.

    A record's kind is set by `extra={"kind": ...}`; else a warning or worse is of the kind
    of its logger and unformatted text. Any other record has no kind and is always admitted.
    """

    def __init__(self) -> None:
        self._windows: dict[Hashable, _Window] = {}

    def admits(self, record: logging.LogRecord, now: float) -> bool:
        """Tells whether a record is written; `now` is in seconds of any monotonic clock."""
        kind = _kind_of(record)
        if kind is None:
            return True
        if kind not in self._windows and len(self._windows) >= MAX_KINDS:
            kind = None  # no record's own
        window = self._windows.setdefault(kind, _Window(now))
        if window.written < MAX_LINES:
            window.written += MAX_LINES if record.exc_info else 1
            return True
        if not window.dropped:
            window.name, window.level, window.example = record.name, record.levelno, _example_of(record)
        window.dropped += 1
        return False

    def counts(self, now: float, *, ending: bool = False) -> Iterator[logging.LogRecord]:
        """Makes a record of the dropped lines of each window that has ended, or of all when `ending`."""
        for kind, window in list(self._windows.items()):
            seconds = now - window.begin
            if seconds < window.seconds and not ending:
                continue
            del self._windows[kind]
            if window.dropped:
                text = "... and %s more like this in %.1f s: %s"
                values = (f"{window.dropped:,}", seconds, window.example)
                yield _record(window.name, text, *values, level=window.level)
                self._windows[kind] = _Window(now, min(2 * window.seconds, MAX_WINDOW_SECONDS))


def _kind_of(record: logging.LogRecord) -> Hashable | None:
    kind: Hashable | None = getattr(record, "kind", None)
    if kind is None and record.levelno >= logging.WARNING:
        return record.name, _template_of(record)
    return kind


def _template_of(record: logging.LogRecord) -> str:
    # asyncio formats its own: the objects that it names in further lines are new each time.
    return str(record.msg).partition("\n")[0]


def _example_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().partition("\n")[0][:EXAMPLE_CHARACTERS]
    except Exception:  # arguments that do not fit the text
        return _template_of(record)[:EXAMPLE_CHARACTERS]


def _record(name: str, text: str, *values: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, text, values, None)


def log_to(stream: TextIO, level: str) -> BackgroundHandler:
    """Sends the log of this process, and Python's warnings, to a stream from a level ("info" …) up."""
    # The stream's own lock stays free, though a write to its descriptor hangs.
    handler = BackgroundHandler(partial(_write_to, stream.fileno(), stream.encoding))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    return handler


def _write_to(descriptor: int, encoding: str, text: str) -> None:
    left = memoryview(text.encode(encoding, "replace"))
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # another process has made the shared descriptor so
            select.select([], [descriptor], [])
