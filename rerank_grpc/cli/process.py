"""The process of a server command: its log, the signals that stop it, and how it ends."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from rerank_grpc import kept
from rerank_grpc.cli.logs import log_to
from rerank_grpc.cli.terminal import Screen, error_line
from rerank_grpc.config import files
from rerank_grpc.errors import ConfigurationError

DUMP_SECONDS = 1.0  # a thread that hangs this long after the grace is dumped, and the process ends
ALARM_SECONDS = 1.5  # the dump hangs as well where its pipe is full; then the kernel ends the process


class Process:
    """The log and the end of a server's process; made once, on the main thread.

    The first SIGTERM or SIGINT asks it to stop, the second ends it at once. The main thread waits on a pipe
    that Python's C handler writes to, not on a threading.Event: a signal just before the thread sleeps would
    be noticed with the next signal only, and a handler that sets an event hangs where its own thread holds
    that event's lock.
    """

    def __init__(self, log_level: str, grace_seconds: float) -> None:
        self.screen = Screen.of(sys.stderr)
        self.log = log_to(sys.stderr, log_level)
        self._grace_seconds = grace_seconds
        self.stopping = False
        files.raise_limit()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        # A terminal that closes ends the server as SIGTERM does, unless nohup ignores SIGHUP.
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, self._on_signal)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a parent may have ignored it

    def wait(self) -> None:
        """Waits for the signal to stop."""
        while not self.stopping:
            os.read(self._reading, 1)

    def drain(self, drain: Callable[[], None]) -> None:
        """Calls a function on a thread of its own, free for the second signal meanwhile."""
        if not self.stopping:
            self._limit_end()
        with ThreadPoolExecutor(1, thread_name_prefix="drain") as pool:
            drained = pool.submit(drain)
            drained.add_done_callback(lambda _: self._wake())
            while not drained.done():
                os.read(self._reading, 1)
        drained.result()

    def fail(self, error: ConfigurationError) -> None:
        """Logs in one line why the command ends."""
        self.log.say(self.screen.paint(error_line(str(error)), "red"))

    def end(self, status: int) -> NoReturn:
        """Writes the rest of the log and ends: an ordinary exit would wait for threads that hang."""
        # Only the log's reader is waited for, for a second, and the alarm stays set.
        faulthandler.cancel_dump_traceback_later()
        self.log.close()
        kept.remove_temporary()
        os._exit(status)

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self._writing, b"\0")

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.stopping and number == signal.SIGHUP:
            return  # a shell and the terminal each send one
        if self.stopping:
            os._exit(128 + number)
        self.stopping = True
        self._limit_end()
        self._wake()  # a library may have taken the wake-up descriptor
        note = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
        self.log.say("", f"stopping: calls in progress have {self._grace_seconds:g} s{note}")

    def _limit_end(self) -> None:
        """Sets two timers that end the process in time; both fire though the GIL is never released."""
        faulthandler.dump_traceback_later(self._grace_seconds + DUMP_SECONDS, exit=True)
        signal.setitimer(signal.ITIMER_REAL, self._grace_seconds + ALARM_SECONDS)


SERVER_EXTRA = 'pip install "rerank-grpc[server]"'


@contextmanager
def needs(purpose: str, remedy: str) -> Iterator[None]:
    """Raises ConfigurationError where the block imports a package that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = error.name or "a package"
        if name.startswith("rerank_grpc"):
            raise
        raise ConfigurationError(f"{purpose} needs {name}, which is not installed: {remedy}") from None


def address(host: str, port: int) -> str:
    """Writes host and port as a client dials them."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
