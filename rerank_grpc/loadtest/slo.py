"""The objective that a rate must meet: limits of latency by percentile, and of the share of errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_LATENCY = re.compile(r"p([0-9]{1,2}(?:\.[0-9]+)?)(?:=|<=?)([0-9]+(?:\.[0-9]+)?)(ms|s)")
_ERRORS = re.compile(r"errors(?:=|<=?)([0-9]+(?:\.[0-9]+)?)%")


class LatencyLimit(NamedTuple):
    """A percentage of all calls are answered with scores within so many seconds."""

    percent: float
    seconds: float

    def __str__(self) -> str:
        limit = f"{self.seconds:g} s" if self.seconds >= 1 else f"{1000 * self.seconds:g} ms"
        return f"p{self.percent:g} ≤ {limit}"


class Objective(NamedTuple):
    """All limits together; a call that fails is late for each of latency."""

    latencies: tuple[LatencyLimit, ...] = ()
    errors: float | None = None  # the largest share

    @classmethod
    def of(cls, text: str) -> Objective:
        """Reads limits between commas; raises ValueError, which names the one that is none."""
        latencies, errors = list[LatencyLimit](), None
        for part in text.replace(" ", "").split(","):
            if (match := _LATENCY.fullmatch(part)) and float(match[1]) > 0 and float(match[2]) > 0:
                seconds = float(match[2]) / (1000 if match[3] == "ms" else 1)
                latencies.append(LatencyLimit(float(match[1]), seconds))
            elif match := _ERRORS.fullmatch(part):
                errors = float(match[1]) / 100
            else:
                raise ValueError(f"{part!r} is none of p99=500ms, p50=0.2s, errors<1%, with commas between")
        return cls(tuple(latencies), errors)

    @property
    def call_seconds(self) -> float | None:
        """The time within which one call's answer is a good one: the longest limit; None without any."""
        return max((each.seconds for each in self.latencies), default=None)

    @property
    def least_calls(self) -> int:
        """The calls that a verdict needs: three beyond the highest percentile."""
        beyond = min((100 - each.percent for each in self.latencies), default=100.0)
        if self.errors:
            beyond = min(beyond, 100 * self.errors)
        return round(300 / beyond)

    def missed(self, latencies: Sequence[float], failed: int) -> list[str]:
        """Says which limits are missed by the latencies of answered calls and the count of failed ones."""
        calls = len(latencies) + failed
        if not calls:
            return ["no call ended"]
        found = []
        for limit in self.latencies:
            share = sum(each <= limit.seconds for each in latencies) / calls
            if share < limit.percent / 100:
                found.append(f"{limit}: {share:.1%} of the calls were answered in time")
        if self.errors is not None and failed / calls > self.errors:
            found.append(f"errors ≤ {self.errors:.3%}: {failed / calls:.2%} of the calls failed")
        return found

    def __str__(self) -> str:
        errors = [f"errors ≤ {100 * self.errors:g} %"] if self.errors is not None else []
        return ", ".join([*map(str, self.latencies), *errors])
