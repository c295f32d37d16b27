"""Measures what batches cost: Usage counts them, Meter predicts the next ones.

Pure: times are arguments, so every estimate can be tested by calling it.
"""

from __future__ import annotations

from math import exp, log
from typing import NamedTuple

# One batch moves the estimate by this share of its error, in logarithms, ...
LEARNING = 0.1
# ... and no error counts as more than a factor of 2, so a process that was stopped is one batch among others.
WORST_ERROR = log(2)
# While nothing runs, nothing can correct the estimate, so it returns to what the warm-up measured.
HALF_LIFE_SECONDS = 10.0
# An error is a ratio, which a cost of nothing does not have.
NO_TIME = 1e-9


class Usage(NamedTuple):
    """Counts since the engine was started; the difference of two is what happened between them.

    Attributes:
        batches: that were scored.
        tokens: of those batches.
        room: tokens that those batches could have held.
        busy_seconds: in which the device had a batch, in the seconds of its DeviceClock;
            batches in flight together count once.
    """

    batches: int = 0
    tokens: int = 0
    room: int = 0
    busy_seconds: float = 0.0

    @property
    def fill(self) -> float:
        """The share of the batches' room that tokens took; 0 before the first."""
        return self.tokens / self.room if self.room else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of the time in which the device was busy; 0 before the first batch."""
        return self.tokens / self.busy_seconds if self.busy_seconds else 0.0

    def since(self, earlier: Usage) -> Usage:
        """What happened after an earlier count of the same engine."""
        return Usage(
            self.batches - earlier.batches,
            self.tokens - earlier.tokens,
            self.room - earlier.room,
            self.busy_seconds - earlier.busy_seconds,
        )


class Meter:
    """Estimates the seconds of a batch as fixed + tokens * seconds_per_token.

    The line is kept as its values at two sizes: those of the smallest and of a full
    batch, as the warm-up ran them. A batch corrects the value that its own size
    depends on, so that any number of small batches leaves the cost of a full one
    alone; an intercept and a slope would not keep them apart.

    The estimate drifts back to the warm-up's while nothing runs. So a reading names
    the time up to which nothing has run since the last batch: the start of the batch
    in progress, or now.

    Attributes:
        usage: counts of the batches so far; a value of its own, safe to keep.
        calibrated: whether the warm-up has measured; nothing is predicted before.
    """

    def __init__(self) -> None:
        self.usage = Usage()
        self.calibrated = False
        self._tokens = (1.0, 1.0)  # of the smallest batch, and of a full one
        self._measured = (1.0, 1.0)  # their seconds
        self._deviation = (0.0, 0.0)  # of the estimate from that, in logarithms
        self._ended = 0.0

    def calibrate(self, smallest: Usage, full: Usage) -> None:
        """Takes over what the warm-up measured of batches of two sizes."""
        self._tokens = smallest.tokens / smallest.batches, full.tokens / full.batches
        self._measured = (
            max(NO_TIME, smallest.busy_seconds / smallest.batches),
            max(NO_TIME, full.busy_seconds / full.batches),
        )
        self._deviation = (0.0, 0.0)
        self.calibrated = True

    def add(self, tokens: int, room: int, seconds: float, *, started: float, ended: float) -> None:
        """Counts a batch and corrects the estimate by it; a batch longer than its room filled it."""
        batches, all_tokens, all_room, busy = self.usage
        self.usage = Usage(batches + 1, all_tokens + tokens, all_room + max(room, tokens), busy + seconds)
        if self.calibrated and seconds > 0:
            self._correct(tokens, seconds, started)
        self._ended = ended

    def _correct(self, tokens: int, seconds: float, started: float) -> None:
        of_smallest, of_full = self._parts(tokens, started)
        predicted = of_smallest + of_full
        step = LEARNING * max(-WORST_ERROR, min(WORST_ERROR, log(seconds / predicted)))
        smallest, full = self._drifted(started)
        self._deviation = smallest + step * of_smallest / predicted, full + step * of_full / predicted

    def seconds(self, tokens: float, room: int, idle_until: float) -> float:
        """Predicts how long the device takes for so many tokens, in batches of at most `room`."""
        if not tokens:
            return 0.0
        return max(1.0, tokens / room) * sum(self._parts(min(tokens, room), idle_until))

    def _parts(self, tokens: float, idle_until: float) -> tuple[float, float]:
        """The seconds of a batch, as the parts that go by the smallest and by the full one."""
        smallest, full = self._tokens
        if tokens >= full:  # beyond, the cost goes by tokens alone
            weights = 0.0, tokens / full
        else:
            share = max(0.0, (tokens - smallest) / (full - smallest)) if full > smallest else 0.0
            weights = 1 - share, share
        deviation = self._drifted(idle_until)
        return (
            weights[0] * self._measured[0] * exp(deviation[0]),
            weights[1] * self._measured[1] * exp(deviation[1]),
        )

    def _drifted(self, idle_until: float) -> tuple[float, float]:
        """The deviation after the idle time since the last batch."""
        kept = 0.5 ** (max(0.0, idle_until - self._ended) / HALF_LIFE_SECONDS)
        smallest, full = self._deviation
        return smallest * kept, full * kept
