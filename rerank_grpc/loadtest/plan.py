"""When calls are sent: planned before the first of them, so that no answer's delay can move one."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rerank_grpc.errors import ConfigurationError

ARRIVALS = ("poisson", "constant")
LONE_SECONDS = 1.0  # that are measured of recorded calls which have one time between them


class PlannedCall(NamedTuple):
    """A call to be sent `at` so many seconds after the measured time begins: before 0 it warms up."""

    at: float
    number: int  # of its texts


class RecordedPlan(NamedTuple):
    """Recorded calls; the measured time begins with the first one behind the warm-up.

    It ends with --duration, or a mean gap behind the last call: n calls fill n gaps.
    """

    calls: list[PlannedCall]
    warm_up: float
    seconds: float
    left_out: int  # calls behind the end

    @property
    def rate(self) -> float:
        """The measured calls a second."""
        return sum(call.at >= 0 for call in self.calls) / self.seconds


def arrivals(
    kind: str, rate: float, warm_up: float, seconds: float, chance: random.Random, first: int
) -> list[PlannedCall]:
    """Plans calls at a rate a second, numbered from `first`: of a Poisson process, or at equal distances."""
    gaps = _poisson(rate, chance) if kind == "poisson" else _constant(rate)
    calls, at = list[PlannedCall](), -warm_up
    for gap in gaps:
        at += gap
        if at >= seconds:
            break
        calls.append(PlannedCall(at, first + len(calls)))
    return calls


def recorded(times: Sequence[float], warm_up: float, speed: float, most: float | None) -> RecordedPlan:
    """Plans calls at recorded times, `speed` times as fast; those within `warm_up` seconds warm up.

    The first recorded time is the beginning, whatever clock it was read from. At most `most` seconds are
    measured. Raises ConfigurationError where no call lies behind the warm-up.
    """
    since = [round((time - times[0]) / speed, 6) for time in times]
    begin = next((time for time in since if time >= warm_up), None)
    if begin is None:
        raise ConfigurationError(
            f"--replay: none of the {len(since):,} calls, which take {since[-1]:.4g} s, lies behind the "
            f"--warm-up of {warm_up:g} s: give a shorter one"
        )
    at = [round(time - begin, 6) for time in since]
    measured = sum(time >= 0 for time in at)
    gap = at[-1] / (measured - 1) if at[-1] > 0 else LONE_SECONDS
    seconds = min(at[-1] + gap, most if most is not None else math.inf)
    calls = [PlannedCall(time, number) for number, time in enumerate(at) if time < seconds]
    return RecordedPlan(calls, begin, seconds, len(at) - len(calls))


def _poisson(rate: float, chance: random.Random) -> Iterator[float]:
    while True:
        yield chance.expovariate(rate)


def _constant(rate: float) -> Iterator[float]:
    while True:
        yield 1 / rate
