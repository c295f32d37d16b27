"""SIGTERM and SIGINT: the first drains, the second ends the process."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import NoReturn


class Stopping:
    """Whether a signal has come that ends the process; made once, on the main thread.

    The main thread waits on a pipe that Python's C handler writes to, not on a
    threading.Event: a signal that came just before the thread slept would be
    noticed with the next one only, and a handler that sets an event while its
    own thread holds that event's lock would hang.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._came = False
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def is_set(self) -> bool:
        """Whether it has come."""
        return self._came

    def wait(self) -> None:
        """Waits until it comes."""
        while not self._came:
            os.read(self._reading, 1)

    def drain(self, drain: Callable[[], None]) -> None:
        """Calls what drains, on a thread of its own: this one is there for the second signal."""
        with ThreadPoolExecutor(1, thread_name_prefix="drain") as pool:
            drained = pool.submit(drain)
            drained.add_done_callback(lambda _: self._wake())
            while not drained.done():
                os.read(self._reading, 1)
        drained.result()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # then there is enough to read
            os.write(self._writing, b"\0")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._came:
            os._exit(128 + number)
        self._came = True
        self._wake()  # in case somebody has taken the wake-up descriptor
        note = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
        with suppress(OSError):  # whoever read it may have gone
            if not select.select([], [2], [], 0)[1]:
                return  # or reads no more, and must not keep this thread
            os.write(2, f"\nstopping: calls in progress have {self._grace_seconds:g} s{note}\n".encode())


def end_process(status: int) -> NoReturn:
    """Writes what is left of the log, and ends: an ordinary exit would wait for threads that hang."""
    logging.shutdown()
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(status)
