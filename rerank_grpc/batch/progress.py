"""How far a run has come, and when it will end: a line that a terminal renews, or a line now and then."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from time import monotonic
from typing import TextIO

from rerank_grpc.units import duration

RENEWED_SECONDS = 0.2  # on a terminal
LINE_SECONDS = 10.0  # elsewhere


@dataclass(slots=True)
class RunCounts:
    """The work that is done: of all starts of a run, and of this one."""

    rows: int = 0
    pairs: int = 0
    bad: int = 0
    scored: int = 0  # pairs, by this start
    position: float = 0.0  # share of the input that is done
    tokens: int = 0  # that batches held, and the room for them
    room: int = 0

    @property
    def fill(self) -> float:
        """How full the device's batches were; 0 before the first."""
        return self.tokens / self.room if self.room else 0.0


def line(counts: RunCounts, began: float, seconds: float) -> str:
    """Writes how far a run is, `seconds` after it began at a share of the input."""
    facts = [f"{counts.position:6.1%}  {counts.pairs:,} pairs of {counts.rows:,} rows"]
    if counts.bad:
        facts.append(_bad(counts.bad))
    if counts.scored and seconds > 0:
        facts.append(f"{rate(counts.scored, seconds)}")
        if counts.position > began:
            left = seconds * (1 - counts.position) / (counts.position - began)
            facts.append(f"{duration(left)} left")
    return ", ".join(facts)


def summary(counts: RunCounts, seconds: float) -> str:
    """Writes what a finished run has done."""
    facts = [f"{counts.pairs:,} pairs of {counts.rows:,} rows"]
    if counts.scored != counts.pairs:
        facts.append(f"{counts.scored:,} of them by this start")
    facts.append(f"in {duration(seconds)}")
    if counts.scored:
        facts.append(rate(counts.scored, seconds))
    if counts.room:
        facts.append(f"batches {counts.fill:.0%} full")
    return ", ".join(facts)


def rate(pairs: int, seconds: float) -> str:
    """Writes pairs a second with two digits at least."""
    found = pairs / max(seconds, 1e-9)
    return f"{found:,.0f} pairs/s" if found >= 10 else f"{found:.2g} pairs/s"


class RunProgress:
    """Shows the counts of a run on a stream; `width` is its terminal's, None for a file or a pipe."""

    def __init__(self, counts: RunCounts, width: int | None, stream: TextIO | None = None) -> None:
        self.counts = counts
        self._width, self._stream = width, stream or sys.stderr
        self._start = self._shown = monotonic()
        self._began = 0.0
        self._drawn = 0

    def begin(self) -> None:
        """Begins the time that is told, at the share of the input that is done."""
        self._start = self._shown = monotonic()
        self._began = self.counts.position

    @property
    def seconds(self) -> float:
        """The time since it began."""
        return monotonic() - self._start

    def show(self) -> None:
        """Shows the counts, unless it has just done so."""
        now = monotonic()
        if now - self._shown < (LINE_SECONDS if self._width is None else RENEWED_SECONDS):
            return
        self._shown = now
        text = line(self.counts, self._began, self.seconds)
        if self._width is None:
            self.say(text.strip())
            return
        text = text[: self._width - 1]
        self._stream.write("\r" + text.ljust(self._drawn))
        self._stream.flush()
        self._drawn = len(text)

    def say(self, text: str) -> None:
        """Writes a line of its own."""
        self.clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def clear(self) -> None:
        """Leaves nothing of the renewed line."""
        if self._drawn:
            self._stream.write("\r" + " " * self._drawn + "\r")
            self._stream.flush()
            self._drawn = 0


def _bad(count: int) -> str:
    return f"{count:,} bad row{'s' if count > 1 else ''}"
