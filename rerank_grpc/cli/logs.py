"""The log of a server: one line a record on stderr, written behind the callers' backs.

An ordinary handler writes and flushes under a lock, on the thread that answers
the call: every call would queue there behind every other, and for ever once
the log's reader stops reading. Here a caller only puts a record aside. One
thread makes lines of what has come, every tenth of a second or at once after a
warning; a second thread writes them, and is the only one that a full pipe, a
slow disk or a stopped terminal can hold up. Both the records and the lines are
bounded: what finds no room is dropped and counted.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TextIO

from rerank_grpc.cli.repeats import Repeats

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
DELAY_SECONDS = 0.1
CLOSE_SECONDS = 1.0
# A hundred milliseconds of the busiest server are some hundred records.
MAX_RECORDS = 10_000
# Lines that wait for their reader, in characters.
MAX_WAITING = 1 << 20


class BackgroundHandler(logging.Handler):
    """Passes lines in their order to `write`, which may block for ever; nothing else here blocks."""

    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__()
        self._write = write
        self._arrived: deque[logging.LogRecord | str] = deque()
        # A SimpleQueue may be put to by a signal handler or a finalizer that interrupts a put.
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self._texts: SimpleQueue[str | None] = SimpleQueue()
        # Each of the two is changed by one thread only; their difference waits to be written.
        self._passed_on, self._written = 0, 0
        self._dropped = 0  # callers add to it without a lock: among thousands, one may be missed
        self._repeats = Repeats()
        self._ending = False
        self._formatter = threading.Thread(target=self._pass_on, name="log", daemon=True)
        self._writer = threading.Thread(target=self._write_all, name="log-writer", daemon=True)
        self._formatter.start()
        self._writer.start()

    def createLock(self) -> None:
        """Does without the lock of ordinary handlers: a deque's append needs none."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Puts a record aside; a warning or worse is written as soon as possible."""
        if len(self._arrived) >= MAX_RECORDS:
            self._dropped += 1
            return
        self._arrived.append(record)
        if record.levelno >= logging.WARNING:
            self.flush()

    def write(self, text: str) -> None:
        """Puts a text aside, to be written as it is between the records before and after it."""
        if len(self._arrived) >= MAX_RECORDS:
            self._dropped += 1
            return
        self._arrived.append(text)
        self.flush()

    def say(self, *lines: str) -> None:
        """Puts whole lines aside, to be written as they are."""
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

    # The thread that makes lines

    def _pass_on(self) -> None:
        ending = False
        while not ending:
            with suppress(Empty):
                self._wakeups.get(timeout=DELAY_SECONDS)
            ending = self._ending  # read first: what came before `close` is in this turn
            text = "".join(self._lines(time.monotonic(), ending))
            if text:
                self._passed_on += len(text)
                self._texts.put(text)
        self._texts.put(None)

    def _lines(self, now: float, ending: bool) -> Iterable[str]:
        """Makes lines of all that has come, and drops those for which there is no room."""
        room = MAX_WAITING - (self._passed_on - self._written)
        if self._dropped and room > MAX_WAITING // 2:
            dropped, self._dropped = self._dropped, 0
            yield self._line(_record(__name__, "%s lines were dropped: they came faster than read", dropped))
        for text in self._admitted(now, ending):
            if len(text) <= room:
                room -= len(text)
                yield text
            else:
                self._dropped += 1

    def _admitted(self, now: float, ending: bool) -> Iterable[str]:
        while self._arrived:
            record = self._arrived.popleft()
            if isinstance(record, str):
                yield record
            elif self._repeats.admits(record, now):
                yield self._line(record)
        yield from map(self._line, self._repeats.counts(now, ending=ending))

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record) + "\n"
        except Exception as error:
            # The arguments are left out: only the template is sure to quote no caller.
            template = str(record.msg).partition("\n")[0]
            text = "a line could not be formatted (%s): %s"
            return self.format(_record(record.name, text, type(error).__name__, template)) + "\n"

    # The thread that writes

    def _write_all(self) -> None:
        while (text := self._texts.get()) is not None:
            with suppress(OSError):  # the reader has left, or the disk is full; the service goes on
                self._write(text)
            self._written += len(text)


def _record(name: str, text: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "", 0, text, values, None)


def log_to(stream: TextIO, level: str) -> BackgroundHandler:
    """Sends the log of this process, and Python's warnings, to a stream from a level ("info" …) up.

    Only the stream's descriptor is used: its own lock stays free, though a write hangs.
    """
    handler = BackgroundHandler(partial(_write_to, stream.fileno(), stream.encoding))
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    # The format shows none of these, and finding them for each record costs as much as the rest of it.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # where the call stands; see "Optimization" in logging's how-to
    return handler


def _write_to(descriptor: int, encoding: str, text: str) -> None:
    left = memoryview(text.encode(encoding, "replace"))
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # whoever shares the descriptor has made it so
            select.select([], [descriptor], [])
