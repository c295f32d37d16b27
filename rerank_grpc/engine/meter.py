"""Measures what a device's batches cost, and predicts the next ones; times are arguments."""

from __future__ import annotations

import threading
from math import exp, log
from typing import NamedTuple

# One batch moves the estimate by this share of its error, in logarithms, ...
LEARNING = 0.1
# ... and no error counts as more than a factor of 2, so a process that was stopped is one batch among others.
WORST_ERROR = log(2)
# Nothing corrects the estimate while nothing runs, so it returns to the warm-up's measurement.
HALF_LIFE_SECONDS = 10.0
# An error is a ratio, which a cost of nothing does not have.
NO_TIME = 1e-9


class DeviceClock:
    """Tells device seconds: while n engines have a batch on the device, one passes in n seconds.

    This is the virtual time of processor sharing: a batch costs the same whether
    or not another model runs beside it. Times are those of time.monotonic.
    """

    def __init__(self) -> None:
        self._users: set[object] = set()
        self._now = self._seconds = 0.0
        self._lock = threading.Lock()

    def time(self, now: float, *, enter: object = None, leave: object = None) -> float:
        """Returns device seconds; from now on counts an engine that enters, and no more one that leaves."""
        with self._lock:
            if now > self._now:  # threads may come out of order by a few microseconds
                self._seconds += (now - self._now) / max(1, len(self._users))
                self._now = now
            if enter is not None:
                self._users.add(enter)
            self._users.discard(leave)
            return self._seconds

    def sharers(self, user: object) -> int:
        """The number of engines on the device once this one has a batch there."""
        return len(self._users | {user})


class Counts(NamedTuple):
    """Counts since the engine was started; the difference of two is what happened between them.

    Attributes:
        batches: those that were scored.
        tokens: of those batches.
        busy_seconds: in which the device had a batch, by its DeviceClock;
            batches in flight together count once.
    """

    batches: int = 0
    tokens: int = 0
    busy_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """The rate of the time in which the device was busy; 0 before the first batch."""
        return self.tokens / self.busy_seconds if self.busy_seconds else 0.0

    def since(self, earlier: Counts) -> Counts:
        """The difference to an earlier count of the same engine."""
        batches, tokens, seconds = earlier
        return Counts(self.batches - batches, self.tokens - tokens, self.busy_seconds - seconds)


class Meter:
    """Estimates the seconds of a batch as fixed + tokens * seconds_per_token.

    The line is kept as its values at two sizes: those of the smallest and of a full
    batch, as the warm-up ran them. A batch corrects the value that its own size
    depends on, so any number of small batches leaves the cost of a full one alone;
    an intercept and a slope would not keep them apart.

    The estimate drifts back to the warm-up's while nothing runs. A reading names the
    time up to which nothing has run since the last batch: the start of the batch in
    progress, or now.

    Attributes:
        counts: those of the batches so far; a value of its own, safe to keep.
        calibrated: whether the warm-up has measured; nothing is predicted before.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self.calibrated = False
        self._tokens = (1.0, 1.0)  # of the smallest batch, and of a full one
        self._measured = (1.0, 1.0)  # their seconds
        self._deviation = (0.0, 0.0)  # of the estimate from that, in logarithms
        self._ended = 0.0

    def calibrate(self, smallest: Counts, full: Counts) -> None:
        """Takes the costs of batches of two sizes that the warm-up measured."""
        self._tokens = smallest.tokens / smallest.batches, full.tokens / full.batches
        self._measured = (
            max(NO_TIME, smallest.busy_seconds / smallest.batches),
            max(NO_TIME, full.busy_seconds / full.batches),
        )
        self._deviation = (0.0, 0.0)
        self.calibrated = True

    def add(self, tokens: int, seconds: float, *, started: float, ended: float) -> None:
        """Counts a batch and corrects the estimate by it."""
        batches, all_tokens, busy = self.counts
        self.counts = Counts(batches + 1, all_tokens + tokens, busy + seconds)
        if self.calibrated and seconds > 0:
            smallest, full = deviation = self._drifted(started)
            of_smallest, of_full = self._parts(tokens, deviation)
            predicted = of_smallest + of_full
            step = LEARNING * max(-WORST_ERROR, min(WORST_ERROR, log(seconds / predicted)))
            self._deviation = smallest + step * of_smallest / predicted, full + step * of_full / predicted
        self._ended = ended

    def seconds(self, tokens: float, budget: int, idle_until: float) -> float:
        """Predicts the device's seconds for tokens in batches of at most `budget`."""
        if not tokens:
            return 0.0
        parts = self._parts(min(tokens, budget), self._drifted(idle_until))
        return max(1.0, tokens / budget) * sum(parts)

    def _parts(self, tokens: float, deviation: tuple[float, float]) -> tuple[float, float]:
        """The seconds of a batch, as the parts that go by the smallest and by the full one."""
        smallest, full = self._tokens
        if tokens >= full:  # beyond, the cost goes by tokens alone
            weights = 0.0, tokens / full
        else:
            share = max(0.0, (tokens - smallest) / (full - smallest)) if full > smallest else 0.0
            weights = 1 - share, share
        return (
            weights[0] * self._measured[0] * exp(deviation[0]),
            weights[1] * self._measured[1] * exp(deviation[1]),
        )

    def _drifted(self, idle_until: float) -> tuple[float, float]:
        """The deviation after the idle time since the last batch."""
        kept = 0.5 ** (max(0.0, idle_until - self._ended) / HALF_LIFE_SECONDS)
        smallest, full = self._deviation
        return smallest * kept, full * kept
