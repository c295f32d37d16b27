"""Measures a step: rates, percentiles, errors, and whether the driver itself was in time.

A percentile is that of all calls, by linear interpolation between the two nearest (Hyndman and Fan's
definition 7, NumPy's default). A call that failed is later than any answer: a percentile that falls among
such calls is not known. Its interval of 95 % is that of order statistics, by the normal approximation
of the binomial; it takes the calls for independent, which those of one queue are not, so it is rather narrow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rerank_grpc.loadtest.driver import Cut, Outcome, Record
from rerank_grpc.loadtest.slo import Objective

PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9)
_NORMAL = 1.959964  # of which 95 % lie within, on both sides
LATE_SECONDS = 0.005
LATE_SHARES = 0.05, 0.10  # of the median latency
JUDGED = (None, Cut.HOPELESS)  # ends of a step that has a verdict
OUTRUN = "the driver cannot send so much: ask for a lower rate or smaller calls, or run it on another machine"
BUSY_SHARE = 0.8  # of one processor, above which the driver is its own bottleneck


class Percentile(NamedTuple):
    """A percentile in seconds, and the bounds of its interval of 95 %.

    None stands for what falls among failed calls, and for a bound where the values are too few.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class StepFigures:
    """The figures of one step; rates are a second, times are seconds."""

    rate: float | None  # that was asked for; None for callers in turn
    callers: int | None
    seconds: float
    calls: int  # that were planned in the measured time and are over
    answered: int
    errors: Mapping[str, int]
    sent_rate: float
    answered_rate: float
    good_rate: float
    documents_rate: float
    tokens_rate: float | None
    latency: Mapping[str, Percentile]
    most: float | None  # the slowest answer's
    late_p99: float | None
    processor_share: float
    cached_share: float | None
    doubts: tuple[str, ...] = ()  # why the figures are not to be trusted
    missed: tuple[str, ...] = ()  # limits of the objective
    cut: Cut | None = None
    cut_short: str = ""
    unfinished: int = 0

    @property
    def failed(self) -> int:
        """The calls without an answer."""
        return self.calls - self.answered

    @property
    def is_judged(self) -> bool:
        """Whether it has a verdict: not where a person or the driver ended it."""
        return self.cut in JUDGED

    def percentile(self, percent: float) -> float | None:
        """Returns a percentile in seconds; None where it falls among failed calls."""
        found = self.latency.get(key_of(percent))
        return found.value if found else None

    def to_json(self) -> dict[str, Any]:
        """Makes the fields of a file."""
        value = asdict(self)
        value["latency"] = {name: each._asdict() for name, each in self.latency.items()}
        return value


def key_of(percent: float) -> str:
    """Names a percentile: "p99.9"."""
    return f"p{percent:g}"


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Interpolates between the two values nearest to a percentile; `ordered` rises and is not empty."""
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    if low == place or ordered[low] == ordered[high]:  # infinite ones have no difference
        return ordered[low]
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def with_interval(ordered: Sequence[float], percent: float) -> Percentile:
    """Finds a percentile with the order statistics on both sides of it; a failed call is infinite."""
    count, share = len(ordered), percent / 100
    middle, spread = count * share, _NORMAL * math.sqrt(count * share * (1 - share))
    low, high = math.floor(middle - spread), math.ceil(middle + spread)
    return Percentile(
        _known(percentile(ordered, percent)),
        _known(ordered[low - 1]) if low >= 1 else None,
        _known(ordered[high]) if high < count else None,
    )


def figures_of(
    record: Record, objective: Objective, *, rate: float | None = None, callers: int | None = None
) -> StepFigures:
    """Measures one step."""
    seconds = record.seconds
    counted = [each for each in record.outcomes if 0 <= each.planned < seconds]
    answered = [each for each in counted if not each.reason]
    # Calls of the warm-up that end within the measured time stand for those that end behind it.
    ended = [each for each in record.outcomes if not each.reason and 0 <= each.ended < seconds]
    latencies = sorted(each.latency for each in answered)
    failed = len(counted) - len(answered)
    all_calls = [*latencies, *[math.inf] * failed]
    limit = objective.call_seconds
    good = sum(limit is None or each <= limit for each in latencies)
    late = sorted(each.lateness for each in counted) if rate is not None else []
    late_p99 = percentile(late, 99) if late else None
    busy = record.processor_seconds / record.wall_seconds if record.wall_seconds else 0.0
    tokens = [each.tokens for each in ended if each.tokens is not None]
    known = [each for each in answered if each.cached is not None]
    return StepFigures(
        rate=rate,
        callers=callers,
        seconds=seconds,
        calls=len(counted),
        answered=len(answered),
        errors=dict(Counter(each.reason for each in counted if each.reason).most_common()),
        sent_rate=_per_second(len(counted) + record.unfinished, seconds),
        answered_rate=_per_second(len(ended), seconds),
        good_rate=_per_second(good, seconds),
        documents_rate=_per_second(sum(each.documents for each in ended), seconds),
        tokens_rate=_per_second(sum(tokens), seconds) if tokens else None,
        latency={key_of(each): with_interval(all_calls, each) for each in PERCENTS if all_calls},
        most=latencies[-1] if latencies else None,
        late_p99=late_p99,
        processor_share=busy,
        cached_share=_cached_share(known),
        doubts=tuple(doubts(late_p99, percentile(latencies, 50) if latencies else None, busy, record.cut)),
        missed=tuple(objective.missed(latencies, failed)) if record.cut in JUDGED else (),
        cut=record.cut,
        cut_short=record.cut_short,
        unfinished=record.unfinished,
    )


def doubts(late_p99: float | None, median: float | None, busy: float, cut: Cut | None = None) -> list[str]:
    """Says what speaks against figures: calls that were sent late, a driver without processor time left."""
    found = [OUTRUN] if cut is Cut.BEHIND else []
    if late_p99 is not None and median is not None:
        allowed = min(max(LATE_SECONDS, LATE_SHARES[0] * median), LATE_SHARES[1] * median)
        if late_p99 > allowed:
            found.append(
                f"1 % of the calls were sent {1000 * late_p99:.1f} ms late or more, "
                f"which is over {1000 * allowed:.1f} ms"
            )
    if busy > BUSY_SHARE:
        found.append(f"the driver was busy for {busy:.0%} of the time")
    return found


def _known(value: float) -> float | None:
    return None if math.isinf(value) else value


def _cached_share(answered: Sequence[Outcome]) -> float | None:
    pairs = sum(each.documents for each in answered)
    return sum(each.cached or 0 for each in answered) / pairs if pairs else None


def _per_second(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
