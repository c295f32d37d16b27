"""The figures that `top` shows, as pure functions of what has been scraped."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

WINDOW_SECONDS = 30.0  # quantiles, batch fill and the device's share are of this time
RATE_SECONDS = 5.0  # rates are of this time
_LATE_SECONDS = 0.5  # a scrape comes this much late and still counts

BUILD = "rerank_build_info"
STARTED = "process_start_time_seconds"
STATE = "rerank_model_state"
REFUSALS = "rerank_refusals_total"
CALLS = "rerank_calls_total"
DURATIONS = "rerank_call_duration_seconds_bucket"
DOCUMENTS = "rerank_documents_total"
TOKENS = "rerank_batch_tokens_sum"
INSIDE = "rerank_calls_inside"
QUEUE = "rerank_queue_tokens"
CAPACITY = "rerank_queue_capacity_tokens"
OLDEST = "rerank_queue_oldest_seconds"
FILL_SUM, FILL_COUNT = "rerank_batch_fill_ratio_sum", "rerank_batch_fill_ratio_count"
BUSY = "rerank_device_busy_seconds_total"
MEMORY = "rerank_model_memory_bytes"
DEVICE_USED, DEVICE_FREE = "rerank_device_memory_used_bytes", "rerank_device_memory_free_bytes"

_COUNTERS = (CALLS, DOCUMENTS, TOKENS, FILL_SUM, FILL_COUNT, BUSY)
_GAUGES = (INSIDE, QUEUE, CAPACITY, OLDEST, MEMORY, DEVICE_USED, DEVICE_FREE)
_SUMMED = frozenset((*_COUNTERS, *_GAUGES))
NAMES = _SUMMED | {BUILD, STARTED, STATE, REFUSALS, DURATIONS}


class Sample(NamedTuple):
    """One line of an exposition; the value is finite."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Scrape:
    """The samples of one scrape, summed over all labels but the model.

    Attributes:
        at: when it was taken, by time.monotonic.
        uptime: how many seconds the server's process had run, None where that is not known.
        started: when that process started, in seconds since the epoch.
        sums: by metric and model; what has no model has "".
        durations: by model, how many calls took at most so many seconds.
    """

    at: float
    uptime: float | None
    started: float | None
    build: Mapping[str, str]
    states: Mapping[str, str]
    sums: Mapping[str, Mapping[str, float]]
    durations: Mapping[str, Mapping[float, float]]
    refusals: Mapping[str, float]
    errors: Mapping[str, float]


def scrape_of(samples: Iterable[Sample], at: float, wall: float) -> Scrape:
    """Sums samples up; `wall` is the time of day then, in seconds since the epoch."""
    build: Mapping[str, str] = {}
    started: float | None = None
    states: dict[str, str] = {}
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    durations: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    refusals: dict[str, float] = defaultdict(float)
    errors: dict[str, float] = defaultdict(float)
    for name, labels, value in samples:
        model = labels.get("model", "")
        if name in _SUMMED:
            sums[name][model] += value
        if name == CALLS and labels.get("code", "OK") != "OK":
            errors[labels["code"]] += value
        elif name == DURATIONS:
            durations[model][_bound(labels)] += value
        elif name == REFUSALS:
            refusals[_refusal(labels)] += value
        elif name == STATE:
            states[model] = labels.get("state", "") if value else states.get(model, "")
        elif name == BUILD:
            build = labels
        elif name == STARTED:
            started = value
    uptime = None if started is None else max(wall - started, 0.0)
    return Scrape(at, uptime, started, build, states, sums, durations, refusals, errors)


def _refusal(labels: Mapping[str, str]) -> str:
    """Names a refusal by its reason, and one for a caller's own rate by the caller as well."""
    reason, caller = labels.get("reason", ""), labels.get("caller", "")
    return f"{reason} {caller}" if caller and reason == "rate_limited" else reason


def _bound(labels: Mapping[str, str]) -> float:
    """Reads a bucket's upper bound; one that cannot be read bounds nothing."""
    try:
        bound = float(labels.get("le", ""))
    except ValueError:
        return math.inf
    return bound if bound == bound else math.inf


def remember(scrapes: Sequence[Scrape], scrape: Scrape) -> tuple[Scrape, ...]:
    """Adds a scrape to those of the last half minute; a server that has started anew begins anew."""
    if scrapes and _restarted(scrapes[-1], scrape):
        return (scrape,)
    begin = scrape.at - WINDOW_SECONDS - _LATE_SECONDS
    return (*(each for each in scrapes if each.at >= begin), scrape)


def _restarted(before: Scrape, after: Scrape) -> bool:
    if before.started != after.started:
        return True
    return sum(after.sums.get(CALLS, {}).values()) < sum(before.sums.get(CALLS, {}).values())


class Interval(NamedTuple):
    """The time between two scrapes, which are one and the same where there is only one."""

    first: Scrape
    last: Scrape

    @classmethod
    def of(cls, scrapes: Sequence[Scrape], seconds: float) -> Interval:
        """Takes the last so many seconds of some scrapes; of two that are farther apart, the time between."""
        begin = scrapes[-1].at - seconds - _LATE_SECONDS
        within = [each for each in scrapes if each.at >= begin]
        return cls((within if len(within) > 1 else scrapes[-2:])[0], scrapes[-1])

    @property
    def seconds(self) -> float:
        """The length of the time."""
        return self.last.at - self.first.at

    def grown(self, metric: str, model: str) -> float:
        """Tells how much a counter has grown."""
        first, last = self.first.sums.get(metric, {}), self.last.sums.get(metric, {})
        return max(last.get(model, 0.0) - first.get(model, 0.0), 0.0)

    def rate(self, metric: str, model: str) -> float | None:
        """Tells how much a counter has grown per second, None where no time has passed."""
        return self.grown(metric, model) / self.seconds if self.seconds > 0 else None

    def ended(self, model: str) -> dict[float, float]:
        """Counts the calls that ended, by the seconds that they took at most."""
        first, last = self.first.durations.get(model, {}), self.last.durations.get(model, {})
        return {bound: count - first.get(bound, 0.0) for bound, count in last.items()}


def quantile(counts: Mapping[float, float], share: float) -> float | None:
    """Interpolates the seconds within which a share of calls ended, as Prometheus does; None without calls.

    `counts` are cumulative, by upper bound. Above the last finite bound nothing is known but that bound.
    """
    edges = [(0.0, 0.0)]
    for bound, count in sorted(counts.items()):
        edges.append((bound, max(count, edges[-1][1])))
    rank = share * edges[-1][1]
    if not rank > 0:
        return None
    for (low, before), (high, until) in pairwise(edges):
        if until >= rank:
            return low if math.isinf(high) else low + (high - low) * (rank - before) / (until - before)
    return None


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model's figures; None is what is not known, or a mean of nothing.

    Memory is in bytes; calls, documents and tokens (those that the device reads) are per second; p50, p99 and
    the age of the oldest call in the queue in seconds; the queue in tokens; full (of the queue), fill (of
    batches) and busy (the device) are shares of 1.
    """

    name: str
    state: str
    memory: float | None
    calls: float | None
    documents: float | None
    tokens: float | None
    p50: float | None
    p99: float | None
    inside: float | None
    queue: float | None
    full: float | None
    oldest: float | None
    fill: float | None
    busy: float | None


class Tally(NamedTuple):
    """A reason or code: how often per second, None where no time has passed, and how often so far."""

    name: str
    rate: float | None
    total: float


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of a server: its build, and models in the order in which it lists them.

    `rate_seconds` and `window_seconds` are the times that rates, and means and quantiles, are of. `used` and
    `free` are bytes of the device's memory.
    """

    build: Mapping[str, str]
    uptime: float | None
    used: float | None
    free: float | None
    rate_seconds: float
    window_seconds: float
    models: Sequence[ModelFigures]
    refusals: Sequence[Tally]
    errors: Sequence[Tally]


def figures_of(scrapes: Sequence[Scrape]) -> Figures:
    """Makes the figures of one server's scrapes, the oldest first; there is at least one."""
    recent, window = Interval.of(scrapes, RATE_SECONDS), Interval.of(scrapes, WINDOW_SECONDS)
    last = scrapes[-1]
    # A REST server alone has no models: there, those that were called are shown.
    names = last.states or last.sums.get(CALLS, {})
    return Figures(
        build=last.build,
        uptime=last.uptime,
        used=last.sums.get(DEVICE_USED, {}).get(""),
        free=last.sums.get(DEVICE_FREE, {}).get(""),
        rate_seconds=recent.seconds,
        window_seconds=window.seconds,
        models=[_model(name, recent, window) for name in names],
        refusals=_tallies(recent, recent.first.refusals, last.refusals),
        errors=_tallies(recent, recent.first.errors, last.errors),
    )


def _model(name: str, recent: Interval, window: Interval) -> ModelFigures:
    last = recent.last

    def gauge(metric: str) -> float | None:
        return last.sums.get(metric, {}).get(name)

    queue, busy, ended = gauge(QUEUE), window.rate(BUSY, name), window.ended(name)
    return ModelFigures(
        name=name,
        state=last.states.get(name, ""),
        memory=gauge(MEMORY),
        calls=recent.rate(CALLS, name),
        documents=recent.rate(DOCUMENTS, name),
        tokens=recent.rate(TOKENS, name),
        p50=quantile(ended, 0.5),
        p99=quantile(ended, 0.99),
        inside=gauge(INSIDE),
        queue=queue,
        full=_share(queue, gauge(CAPACITY)),
        oldest=gauge(OLDEST),
        fill=_share(window.grown(FILL_SUM, name), window.grown(FILL_COUNT, name)),
        # Seconds count when a batch ends, of which the first may have begun before.
        busy=None if busy is None else min(busy, 1.0),
    )


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _tallies(interval: Interval, first: Mapping[str, float], last: Mapping[str, float]) -> list[Tally]:
    """Lists what has happened at all, the most frequent first."""
    seconds = interval.seconds
    tallies = [
        Tally(name, max(total - first.get(name, 0.0), 0.0) / seconds if seconds > 0 else None, total)
        for name, total in last.items()
        if total > 0
    ]
    return sorted(tallies, key=lambda tally: (-(tally.rate or 0.0), -tally.total, tally.name))


def busiest(models: Iterable[ModelFigures]) -> list[ModelFigures]:
    """Sorts models by what they do: the share of the device, then tokens and calls per second, then calls."""

    def key(model: ModelFigures) -> tuple[float, ...]:
        return tuple(-(figure or 0.0) for figure in (model.busy, model.tokens, model.calls, model.inside))

    return sorted(models, key=key)
