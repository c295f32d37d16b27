"""SIGTERM and SIGINT: the first drains, the second ends the process, and a watchdog waits for neither."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from rerank_grpc.cli.logs import BackgroundHandler

# What drains has the whole grace; where a thread hangs on after it, the process ends so much later,
# and shows where each thread stood.
DUMP_SECONDS = 1.0
# Where even that hangs, because nobody reads it, the kernel ends the process.
ALARM_SECONDS = 1.5


class Stopping:
    """Whether a signal has come that ends the process; made once, on the main thread.

    The main thread waits on a pipe that Python's C handler writes to, not on a
    threading.Event: a signal that came just before the thread slept would be
    noticed with the next one only, and a handler that sets an event while its
    own thread holds that event's lock would hang.
    """

    def __init__(self, grace_seconds: float, log: BackgroundHandler) -> None:
        self._grace_seconds = grace_seconds
        self._log = log
        self._came = False
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # A terminal that closes ends the server as SIGTERM does, unless nohup has said that it shall not.
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, self._on_signal)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a parent may have ignored it

    def is_set(self) -> bool:
        """Whether it has come."""
        return self._came

    def wait(self) -> None:
        """Waits until it comes."""
        while not self._came:
            os.read(self._reading, 1)

    def drain(self, drain: Callable[[], None]) -> None:
        """Calls what drains, on a thread of its own: this one is there for the second signal."""
        if not self._came:
            self._watch_end()
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
        if self._came and number == signal.SIGHUP:
            return  # a shell and the terminal each send one
        if self._came:
            os._exit(128 + number)
        self._came = True
        self._watch_end()
        self._wake()  # in case somebody has taken the wake-up descriptor
        note = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
        self._log.say("", f"stopping: calls in progress have {self._grace_seconds:g} s{note}")

    def _watch_end(self) -> None:
        """Sees to it that the process ends in time: both timers fire though the GIL is never released."""
        faulthandler.dump_traceback_later(self._grace_seconds + DUMP_SECONDS, exit=True)
        signal.setitimer(signal.ITIMER_REAL, self._grace_seconds + ALARM_SECONDS)


def end_process(status: int, log: BackgroundHandler) -> NoReturn:
    """Writes what is left of the log, and ends: an ordinary exit would wait for threads that hang."""
    # All is done: only the log's reader is waited for, for a second, and the alarm stays set.
    faulthandler.cancel_dump_traceback_later()
    log.close()
    os._exit(status)
