"""When calls are sent: planned before the first of them, so that no answer's delay can move one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ARRIVALS = ("poisson", "constant")


class PlannedCall(NamedTuple):
    """A call to be sent `at` so many seconds after the measured time begins: before 0 it warms up."""

    at: float
    number: int  # of its texts


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


def recorded(times: Sequence[float], warm_up: float, seconds: float, speed: float) -> list[PlannedCall]:
    """Plans calls at recorded times, `speed` times as fast; the first `warm_up` seconds warm up.

    The first recorded time is the beginning, whatever clock it was read from.
    """
    begin = times[0] if times else 0.0
    at = ((round((time - begin) / speed - warm_up, 6), number) for number, time in enumerate(times))
    return [PlannedCall(time, number) for time, number in at if time < seconds]


def _poisson(rate: float, chance: random.Random) -> Iterator[float]:
    while True:
        yield chance.expovariate(rate)


def _constant(rate: float) -> Iterator[float]:
    while True:
        yield 1 / rate
