"""The log of a server: one line a record on stderr, written behind the callers' backs.

An ordinary handler writes and flushes under a lock, on the thread that answers
the call, and lets go of the interpreter for each: every call would queue there
behind every other. Here a record is put aside, and one thread writes all that
have come every tenth of a second. Warnings are written at once.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import suppress
from typing import TextIO

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
DELAY_SECONDS = 0.1


class BackgroundHandler(logging.Handler):
    """Writes records to a stream in batches, in their order; `close` writes the rest."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._records: deque[logging.LogRecord] = deque()
        self._writing = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def createLock(self) -> None:
        """Does without the lock of ordinary handlers: a deque's append needs none."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Puts a record aside, and writes it at once if it is a warning or worse."""
        self._records.append(record)
        if record.levelno >= logging.WARNING:
            self.flush()

    def flush(self) -> None:
        """Writes all that has come."""
        with self._writing:
            lines = []
            while self._records:
                record = self._records.popleft()
                try:
                    lines.append(self.format(record) + "\n")
                except Exception:
                    self.handleError(record)
            if lines:
                with suppress(OSError):  # whoever read it may have gone; the service goes on
                    self._stream.write("".join(lines))
                    self._stream.flush()

    def close(self) -> None:
        """Writes the rest and ends the thread."""
        self._ending.set()
        self._thread.join(1)
        self.flush()
        super().close()

    def _run(self) -> None:
        while not self._ending.wait(DELAY_SECONDS):
            self.flush()


def log_to(stream: TextIO, level: str) -> None:
    """Sends the log of this process to a stream, from a level ("info" …) up."""
    handler = BackgroundHandler(stream)
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # The format shows none of these, and finding them for each record costs as much as the rest of it.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # where the call stands; see "Optimization" in logging's how-to
