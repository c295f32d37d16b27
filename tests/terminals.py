"""A terminal of a fixed size, as a real pty, and what a program has drawn on it."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import tty
from typing import Self

from rerank_grpc.cli.terminal import cells
from tests.command import environment
from tests.support import wait_for

# The program gets the terminal as its own, so that keys become signals and a resize is told.
_START = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")
_INCOMPLETE = re.compile(r"\x1b(\[[?0-9;]*)?$")
_LAST = b"\x1b[0;0;0m"  # draws nothing, and no program writes it


class Drawn:
    """What a terminal shows; knows the sequences that rich sends, and fails on any other."""

    def __init__(self, columns: int, rows: int) -> None:
        self.alternate, self.cursor, self.wrapped, self.scrolled = False, True, False, False
        self._decoder, self._rest = codecs.getincrementaldecoder("utf-8")(), ""
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._clear()

    def _clear(self) -> None:
        self._lines = [[" "] * self.columns for _ in range(self.rows)]
        self._row = self._column = 0

    @property
    def lines(self) -> list[str]:
        return ["".join(line).rstrip() for line in self._lines]

    def feed(self, data: bytes) -> None:
        text = self._rest + self._decoder.decode(data)
        cut = _INCOMPLETE.search(text)
        self._rest = text[cut.start() :] if cut else ""
        text = text[: cut.start()] if cut else text
        place = 0
        while place < len(text):
            if sequence := _SEQUENCE.match(text, place):
                self._obey(sequence[1], sequence[2])
                place = sequence.end()
            else:
                self._put(text[place])
                place += 1

    def _obey(self, numbers: str, command: str) -> None:
        if command == "H":
            row, column = (int(number or 1) for number in (numbers or "1;1").split(";"))
            self._row, self._column = row - 1, column - 1
        elif (numbers, command) in (("?1049", "h"), ("?1049", "l")):
            self.alternate = command == "h"
            self._clear()
        elif (numbers, command) in (("?25", "h"), ("?25", "l")):
            self.cursor = command == "h"
        else:
            assert command == "m", (numbers, command)

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._down()
        else:
            assert character.isprintable(), ascii(character)
            width = cells(character)
            if self._column + width > self.columns:
                self.wrapped, self._column = True, 0
                self._down()
            if width:
                self._lines[self._row][self._column : self._column + width] = [character, *[""] * (width - 1)]
            self._column += width

    def _down(self) -> None:
        if self._row + 1 < self.rows:
            self._row += 1
        else:
            self.scrolled = True
            self._lines = [*self._lines[1:], [" "] * self.columns]


class Terminal:
    """Runs `rerank-grpc` on a terminal of its own, which is read all the time."""

    def __init__(self, columns: int, rows: int, *arguments: str, **variables: str) -> None:
        self.drawn = Drawn(columns, rows)
        self.raw = b""
        self._lock = threading.Lock()
        self._ours, self._theirs = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self._theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, "-m", "rerank_grpc", *arguments],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=environment(**({"TERM": "xterm-256color"} | variables)),
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._theirs)  # the last one: only now does the reader's end
        self._reader.join()
        os.close(self._ours)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 65_536)
            except OSError:  # nobody has the other side any more
                return
            with self._lock:
                self.raw += data
                self.drawn.feed(data)

    def resize(self, columns: int, rows: int) -> None:
        """Gives it another size, of which its program is told."""
        with self._lock:
            self.drawn.resize(columns, rows)
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: str) -> None:
        """Types keys."""
        os.write(self._ours, keys.encode())

    @property
    def keeps_keys(self) -> bool:
        """Whether keys that were typed before Ctrl-C can still be read after it."""
        return bool(termios.tcgetattr(self._theirs)[tty.LFLAG] & termios.NOFLSH)

    @property
    def lines(self) -> list[str]:
        """The lines that it shows."""
        with self._lock:
            return self.drawn.lines

    def wait_for(self, pattern: str) -> list[str]:
        """Waits until a line has a pattern in it, and returns all lines."""
        found: list[str] = []

        def is_there() -> bool:
            found[:] = self.lines
            return any(re.search(pattern, line) for line in found)

        try:
            wait_for(is_there)
        except AssertionError:
            raise AssertionError("\n".join([f"no {pattern} in:", *found])) from None
        return found

    def end(self, *, by: str = "", number: signal.Signals | None = None) -> int:
        """Ends the program by a key or a signal; returns its exit status when all that it wrote is drawn."""
        if number is not None:
            self.process.send_signal(number)
        self.type(by)
        status = self.process.wait(20)
        os.write(self._theirs, _LAST)  # comes behind whatever the program left in the terminal's queue
        wait_for(lambda: _LAST in self.raw)
        return status

    def is_restored(self) -> bool:
        """Whether the terminal is as it was, or comes to be so: its modes, its screen and its cursor."""
        # A program that goes on may be about it: the screen comes first, the modes behind it.
        try:
            wait_for(lambda: termios.tcgetattr(self._theirs) == self.before)
            wait_for(lambda: not self.drawn.alternate and self.drawn.cursor)
        except AssertionError:
            return False
        return True

    def await_stop(self) -> None:
        """Waits until the program has stopped, as a job does: SIGCONT before that would be lost."""
        how = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        wait_for(lambda: os.waitid(os.P_PID, self.process.pid, how) is not None)
