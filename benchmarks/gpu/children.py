"""Processes that a run starts: each tells what it finds in lines of JSON, and can be given up."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from time import monotonic, sleep
from typing import Any

TAIL = 6_000  # characters of what a process wrote to its standard error


class TimeIsUp(Exception):
    """A process said nothing until its limit."""


class Child:
    """A Python module in a process of its own, with all processes that it starts."""

    def __init__(self, *arguments: str) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # so that its own processes end with it
        )
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def tell(self, word: str) -> None:
        """Writes a line to its standard input; a process that has ended is told nothing."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()

    def hear(self, until: float) -> dict[str, Any] | None:
        """Waits for the next thing it tells; None at its end. Raises TimeIsUp at a time of `monotonic`."""
        try:
            return self._lines.get(timeout=max(0.001, until - monotonic()))
        except queue.Empty:
            raise TimeIsUp from None

    def ended(self, seconds: float = 0.0) -> int | None:
        """Waits so long at most for its end; returns its exit status, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def stacks(self) -> str:
        """Lets it write the stacks of all threads, if it still can; returns the end of its standard error."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)
            sleep(0.5)
        return self.errors()

    def errors(self) -> str:
        """Returns the end of its standard error."""
        self._log.seek(0)
        return self._log.read()[-TAIL:]

    def stop(self) -> None:
        """Ends it with all processes that it started."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the driver
            self._process.wait(2)
