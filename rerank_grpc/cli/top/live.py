"""The screen of `top`: drawn after each scrape and each resize, left by a key or a signal."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO

from rich.console import Console, RenderableType
from rich.live import Live

from rerank_grpc.cli.top.figures import Scrape, figures_of, remember
from rerank_grpc.cli.top.scrape import EVERY_SECONDS, PATIENCE_SECONDS, Poller, ScrapeError
from rerank_grpc.cli.top.view import draw

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
_KEYS = b"qQ\x04"  # the last is Ctrl-D
_QUIET_SECONDS = EVERY_SECONDS + PATIENCE_SECONDS + 0.5  # after which a server gives no answer


def watch(url: str, console: Console) -> int:
    """Renews the screen until a key or a signal ends it; returns the exit status.

    Raises ScrapeError where the first scrape gives no figures.
    """
    with Poller(url) as poller:
        board = Board(url, poller)
        with _events() as (reading, writing):
            poller.wake = partial(_wake, writing)
            number = _show(board, console, reading)
            while number == signal.SIGTSTP:
                os.kill(os.getpid(), signal.SIGSTOP)
                number = _show(board, console, reading)  # the shell's fg goes on here
    return 0 if number in (0, signal.SIGINT) else 128 + number


class Board:
    """A server as far as it is known: the scrapes of the last half minute, and why there is no newer one."""

    def __init__(self, url: str, poller: Poller) -> None:
        self._url, self._poller = url, poller
        self._scrapes = remember((), poller.wait())
        self._error: ScrapeError | None = None

    def update(self) -> None:
        """Takes what has been scraped meanwhile."""
        for answer in self._poller.take():
            if isinstance(answer, Scrape):
                self._scrapes, self._error = remember(self._scrapes, answer), None
            else:
                self._error = answer

    def draw(self, width: int, height: int) -> RenderableType:
        """Lays out the figures for a terminal's size in cells."""
        return draw(figures_of(self._scrapes), self._url, self._note(), width, height)

    def _note(self) -> str:
        silent = time.monotonic() - self._scrapes[-1].at
        if self._error is None and silent < _QUIET_SECONDS:
            return ""
        return f"no answer since {silent:.0f} s{f': {self._error}' if self._error else ''}"


def _show(board: Board, console: Console, reading: int) -> int:
    """Shows the board until something ends it: returns the signal's number, 0 for a key."""
    try:
        with _keyboard() as keyboard, _screen(console) as live:
            while True:
                board.update()
                console.size = _size(console)
                live.update(board.draw(*console.size), refresh=True)
                ready, _, _ = select.select([reading, *keyboard], [], [], EVERY_SECONDS)
                if reading in ready:
                    for number in os.read(reading, 4096):
                        if number in _ENDING:
                            return number
                if {*keyboard} & {*ready} and _leaves(os.read(keyboard[0], 4096)):
                    return 0
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return signal.SIGHUP  # the terminal has gone


def _screen(console: Console) -> Live:
    return Live(
        console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
    )


def _size(console: Console) -> tuple[int, int]:
    """Asks the terminal itself: rich prefers COLUMNS and LINES, and these follow no resize."""
    columns, lines = os.get_terminal_size(console.file.fileno())
    return columns or 80, lines or 24


def _leaves(typed: bytes) -> bool:
    return not typed or any(key in _KEYS for key in typed)


def _wake(writing: FileIO) -> None:
    with suppress(ValueError, OSError):  # it may be closed by now
        writing.write(b"\0")


@contextmanager
def _events() -> Iterator[tuple[int, FileIO]]:
    """Makes a pipe, to which each signal writes its number, instead of what it does otherwise."""
    ends = os.pipe()
    with FileIO(ends[0]) as reading, FileIO(ends[1], "w") as writing:
        os.set_blocking(writing.fileno(), False)
        numbers = [*_ENDING, signal.SIGWINCH]
        before = {number: signal.getsignal(number) for number in numbers}
        descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        try:
            for number in numbers:
                if number != signal.SIGHUP or before[number] is not signal.SIG_IGN:  # nohup ignores it
                    signal.signal(number, lambda *_: None)
            yield reading.fileno(), writing
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(descriptor)


@contextmanager
def _keyboard() -> Iterator[list[int]]:
    """Has keys come at once and unseen; yields the descriptor to read them from, or none."""
    if not sys.stdin.isatty():
        yield []
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor, termios.TCSANOW)
    # Else Ctrl-C throws away keys that select has told of, and reading them waits for further ones.
    modes = termios.tcgetattr(descriptor)
    modes[tty.LFLAG] |= termios.NOFLSH
    termios.tcsetattr(descriptor, termios.TCSANOW, modes)
    try:
        yield [descriptor]
    finally:
        with suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSANOW, before)
