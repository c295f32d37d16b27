"""The process of a server command: its log, the signals that stop it, and how it ends."""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from rerank_grpc import kept
from rerank_grpc.cli.logs import log_to
from rerank_grpc.cli.terminal import Screen, error_line, printable
from rerank_grpc.errors import ConfigurationError, describe
from rerank_grpc.files import open_files
from rerank_grpc.files.sockets import socket_path

log = logging.getLogger(__name__)

DUMP_SECONDS = 1.0  # a thread that hangs this long after the grace is dumped, and the process ends
SPARE_SECONDS = 0.2  # of that time, kept for the end itself
ALARM_SECONDS = 1.5  # the dump hangs as well where its pipe is full; then the kernel ends the process


class Process:
    """The log and the end of a server's process; made once, on the main thread.

    The log is for people where the format is "text", or "auto" and stderr a terminal; else it is JSON. Raises
    ConfigurationError where structlog is not installed.

    The first SIGTERM or SIGINT asks it to stop, the second ends it at once. The main thread waits on a pipe
    that Python's C handler writes to, not on a threading.Event: a signal just before the thread sleeps would
    be noticed with the next signal only, and a handler that sets an event hangs where its own thread holds
    that event's lock.
    """

    def __init__(self, log_level: str, log_format: str, grace_seconds: float) -> None:
        for_people = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
        self.screen = Screen.of(sys.stderr) if for_people else Screen()
        with needs("serving", f"{SERVER_EXTRA}, or [rest] for REST alone"):
            self.log = log_to(sys.stderr, log_level, for_people=for_people, color=self.screen.color)
        threading.excepthook = _log_failure
        self._grace_seconds = grace_seconds
        self._dump_at = math.inf
        self.stopping = False
        open_files.raise_limit()
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

    @property
    def seconds_left(self) -> float:
        """The seconds that a stopping process may still take before it ends."""
        return max(0.0, self._dump_at - SPARE_SECONDS - time.monotonic())

    def fail(self, error: ConfigurationError) -> None:
        """Logs in one line why the command ends."""
        text = printable(str(error))
        line = self.screen.paint(error_line(text), "red")
        self.log.say(line, event="cannot_start", level=logging.CRITICAL, error=text)

    def end(self, status: int) -> NoReturn:
        """Writes the rest of the log and ends: an ordinary exit would wait for threads that hang."""
        # Only the log's reader is waited for, for a second, and the alarm stays set.
        faulthandler.cancel_dump_traceback_later()
        self.log.say(event="ended", status=status)
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
        text = f"stopping: calls in progress have {self._grace_seconds:g} s{note}"
        self.log.say("", text, event="stopping", grace_seconds=self._grace_seconds)

    def _limit_end(self) -> None:
        """Sets two timers that end the process in time; both fire though the GIL is never released."""
        self._dump_at = time.monotonic() + self._grace_seconds + DUMP_SECONDS
        faulthandler.dump_traceback_later(self._grace_seconds + DUMP_SECONDS, exit=True)
        signal.setitimer(signal.ITIMER_REAL, self._grace_seconds + ALARM_SECONDS)


def _log_failure(failed: threading.ExceptHookArgs) -> None:
    """Logs what ended a thread, without its text, which may quote a caller."""
    if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
        name = failed.thread.name if failed.thread else "unknown"
        log.error("the thread %s has failed: %s", name, describe(failed.exc_value))


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
    """Writes host and port as a client dials them; a Unix socket, which has no port, as it is."""
    if socket_path(host) is not None:
        return host
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
