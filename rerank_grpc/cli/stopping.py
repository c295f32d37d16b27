"""SIGTERM and SIGINT: the first drains, the second ends the process."""

from __future__ import annotations

import os
import signal
from types import FrameType


class Stopping:
    """Whether a signal has come that ends the process; made on the main thread.

    The main thread waits on a pipe that Python's C handler writes to, not on a
    threading.Event: a signal that came just before the thread slept would be
    noticed with the next one only, and a handler that sets an event while its
    own thread holds that event's lock would hang.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._came = False
        self._reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def is_set(self) -> bool:
        """Whether it has come."""
        return self._came

    def wait(self) -> None:
        """Waits until it comes."""
        while not self._came:
            os.read(self._reading, 1)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._came:
            os._exit(128 + number)
        self._came = True
        note = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
        os.write(2, f"\nstopping: calls in progress have {self._grace_seconds:g} s{note}\n".encode())
