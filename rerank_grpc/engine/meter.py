"""Measures a device's batches, predicts their cost, and finds one that hangs; times are arguments."""

from __future__ import annotations

import threading
from math import exp, log
from typing import NamedTuple

LEARNING = 0.1  # one batch moves the estimate by this share of its error, in logarithms
WORST_ERROR = log(2)  # a batch during which the process was stopped is one among others
HALF_LIFE_SECONDS = 10.0  # of a correction while nothing runs, which could correct it again
NO_TIME = 1e-9  # an error is a ratio, which a cost of nothing does not have

LOOKS, LONGEST_INTERVAL = 8, 1.0  # looks until a batch counts as hung; the longest time between two
MOST_INTERVALS = 2  # counted between two looks; a longer time means that the process was stopped


class DeviceClock:
    """Tells device seconds: while n engines have a batch on the device, one passes in n seconds.

    This is the virtual time of processor sharing: a batch costs the same whether
    or not another model runs beside it. Times are those of time.monotonic.
    """

    def __init__(self) -> None:
        self.shared_seconds = 0.0  # that passed while several engines had a batch on the device
        self._users: set[object] = set()
        self._now = self._seconds = 0.0
        self._lock = threading.Lock()

    def time(self, now: float, *, enter: object = None, leave: object = None) -> float:
        """Returns device seconds; an engine that enters counts from now on, and one that leaves no more."""
        with self._lock:
            if now > self._now:  # threads may come out of order by a few microseconds
                self._seconds += (now - self._now) / max(1, len(self._users))
                if len(self._users) > 1:
                    self.shared_seconds += now - self._now
                self._now = now
            if enter is not None:
                self._users.add(enter)
            self._users.discard(leave)
            return self._seconds

    def sharers(self, user: object) -> int:
        """The number of engines on the device once this one has a batch there."""
        return len(self._users | {user})

    def idle_seconds(self, now: float) -> float:
        """The seconds since an engine last had a batch on the device, or was started; 0 while one has."""
        with self._lock:
            return 0.0 if self._users else max(0.0, now - self._now)


class Counts(NamedTuple):
    """Counts since the engine was started; the difference of two is what happened between them."""

    batches: int = 0
    tokens: int = 0
    busy_seconds: float = 0.0  # of the device's clock; batches in flight together count once

    @property
    def tokens_per_second(self) -> float:
        """The rate while the device was busy; 0 before the first batch."""
        return self.tokens / self.busy_seconds if self.busy_seconds else 0.0

    def since(self, earlier: Counts) -> Counts:
        """The difference to an earlier count of the same engine."""
        batches, tokens, seconds = earlier
        return Counts(self.batches - batches, self.tokens - tokens, self.busy_seconds - seconds)


class Meter:
    """Estimates the seconds of a batch as fixed + tokens * seconds_per_token.

    The line is kept as its values at two sizes: those of the smallest and of a full batch, as the warm-up ran
    them. A batch corrects the value that its own size depends on, so any number of small batches leaves the
    cost of a full one alone; an intercept and a slope would not keep them apart.

    The estimate drifts back to the warm-up's while nothing runs. `idle_until` is the time up to which nothing
    has run since the last batch: the start of the batch in progress, or now. Nothing is predicted before the
    warm-up has `calibrated`.
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
        seconds = smallest.busy_seconds / smallest.batches, full.busy_seconds / full.batches
        self._measured = max(NO_TIME, seconds[0]), max(NO_TIME, seconds[1])
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
        of_smallest, of_full = self._measured
        return weights[0] * of_smallest * exp(deviation[0]), weights[1] * of_full * exp(deviation[1])

    def _drifted(self, idle_until: float) -> tuple[float, float]:
        kept = 0.5 ** (max(0.0, idle_until - self._ended) / HALF_LIFE_SECONDS)
        smallest, full = self._deviation
        return smallest * kept, full * kept


class Watchdog:
    """Tells a hung device from a paused process: adds up a batch's time by its own looks.

    A clock goes on while the process is stopped, by SIGSTOP, by `docker pause` or with its virtual machine.
    Looks, `interval` seconds apart, do not, so a pause counts as hardly more than one of them.
    """

    def __init__(self, hang_seconds: float) -> None:
        self.interval = min(hang_seconds / LOOKS, LONGEST_INTERVAL)
        self._hang_seconds = hang_seconds
        self._batch: float | None = None
        self._waited = 0.0
        self._looked = 0.0

    def look(self, started: float | None, now: float) -> bool:
        """Adds the time since the last look to the batch begun at `started`, if any; true if it hangs."""
        if started != self._batch:
            self._batch, self._waited = started, 0.0
        if started is not None:
            since = now - max(started, self._looked)
            self._waited += min(since, MOST_INTERVALS * self.interval)
        self._looked = now
        return self._waited > self._hang_seconds
