"""Replays arrivals over replicas, and adds up what became of them."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import simpy

from benchmarks.simulate.loads import Arrival
from benchmarks.simulate.replica import ANSWERED, Outcome, Replica, Setup, Steps
from benchmarks.simulate.rules import RULES, View


@dataclass(frozen=True, slots=True)
class Replay:
    """The outcome of each call, the busy seconds of each replica, and the seconds until the last answer."""

    outcomes: list[Outcome]
    busy_seconds: list[float]
    seconds: float


def replay(
    arrivals: Iterable[Arrival], setups: Sequence[Setup], rule: str, *, seed: int = 0, stale: float = 0.0
) -> Replay:
    """Runs all arrivals, in the order of their times, to their ends."""
    env = simpy.Environment()
    replicas = [Replica(env, setup) for setup in setups]
    choose = RULES[rule](View(replicas, random.Random(seed), lambda: float(env.now), stale))
    outcomes: list[Outcome] = []

    def arrive() -> Steps:
        for arrival in arrivals:
            if arrival.at > env.now:
                yield env.timeout(arrival.at - env.now)
            index = choose()
            env.process(replicas[index].answer(arrival, index, outcomes))

    env.process(arrive())
    env.run()
    ended = max((each.arrival.at + each.seconds for each in outcomes), default=0.0)
    return Replay(outcomes, [each.busy_seconds for each in replicas], ended)


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums of a replay; latencies in seconds are of calls that were answered."""

    calls: int
    answered: int
    documents: int  # of calls that were answered
    p50: float
    p95: float
    p99: float
    calls_per_second: float  # that were answered
    documents_per_second: float
    refused: dict[str, int]  # by the error's name
    utilisation: float
    least_utilisation: float  # of a replica
    most_utilisation: float
    cost_per_million: float  # documents answered; infinite without any

    @classmethod
    def of(cls, found: Replay, price: float) -> Figures:
        """Adds up; `price` is that of a replica for an hour."""
        answered = [each for each in found.outcomes if each.code == ANSWERED]
        latencies = sorted(each.seconds for each in answered)
        documents = sum(len(each.arrival.tokens) for each in answered)
        seconds, replicas = found.seconds or math.inf, len(found.busy_seconds)
        shares = [busy / seconds for busy in found.busy_seconds]
        spent = price * replicas * found.seconds / 3_600
        return cls(
            len(found.outcomes),
            len(answered),
            documents,
            percentile(latencies, 0.5),
            percentile(latencies, 0.95),
            percentile(latencies, 0.99),
            len(answered) / seconds,
            documents / seconds,
            dict(sorted(Counter(each.code for each in found.outcomes if each.code != ANSWERED).items())),
            sum(shares) / replicas,
            min(shares),
            max(shares),
            spent / documents * 1e6 if documents else math.inf,
        )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least value that so large a share does not exceed; nan without values."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
