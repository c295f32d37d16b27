"""How far `rerank-grpc bench` is: a line for each step, which a terminal renews."""

from __future__ import annotations

from time import monotonic
from typing import TextIO

from rerank_grpc.cli.terminal import Screen
from rerank_grpc.loadtest.driver import Outcome
from rerank_grpc.units import duration

RENEWED_SECONDS = 0.5


class BenchProgress:
    """Tells of steps and, on a terminal, of their calls."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._width = stream, Screen.of(stream).width
        self._text, self._seconds, self._start, self._shown = "", 0.0, 0.0, 0.0
        self._calls = self._failed = self._drawn = 0

    def begin(self, text: str, seconds: float) -> None:
        """Begins a step of so many seconds."""
        self.clear()
        self._text, self._seconds = text, seconds
        self._start = self._shown = monotonic()
        self._calls = self._failed = 0
        if self._width is None:
            self._stream.write(f"{text} for {duration(seconds)}\n")
            self._stream.flush()

    def seen(self, outcome: Outcome) -> None:
        """Counts a call that is over."""
        self._calls += 1
        self._failed += bool(outcome.reason)
        now = monotonic()
        if self._width is None or now - self._shown < RENEWED_SECONDS:
            return
        self._shown = now
        failed = f", {self._failed:,} failed" if self._failed else ""
        left = max(0.0, self._seconds - (now - self._start))
        text = f"{self._text}: {self._calls:,} calls over{failed}, {duration(left)} left"[: self._width - 1]
        self._stream.write("\r" + text.ljust(self._drawn))
        self._stream.flush()
        self._drawn = len(text)

    def clear(self) -> None:
        """Leaves nothing of the renewed line."""
        if self._drawn:
            self._stream.write("\r" + " " * self._drawn + "\r")
            self._stream.flush()
            self._drawn = 0
