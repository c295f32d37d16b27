"""The rules of balancing, replayed by the simulator."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks import report
from benchmarks.simulate import loads
from benchmarks.simulate.costs import measured
from benchmarks.simulate.replay import percentile, replay
from benchmarks.simulate.replica import ANSWERED, Setup
from benchmarks.simulate.rules import RULES

# What the page shows of balancing: replicas, and the constant load as a share of what they can do.
CASES = ((4, 0.5), (4, 0.7), (4, 0.9), (32, 0.7), (32, 0.9), (32, 1.1))
CALLS, DEADLINE, STALE, SEED = 6_000, 30.0, 15.0, 5
# What comes before is replayed and not counted: at 110 % the queues need some 300 s to be as long as the
# deadline, and until then fewer calls are refused than ever after.
WARM_UP = 600.0
TOLD_LATE = f"least-queued, told every {STALE:g} s"


def simulate() -> dict[str, Any]:
    """Replays calls of 10 to 100 passages over replicas of base in int8 under each rule."""
    rules = (*RULES, TOLD_LATE)
    cases = []
    with ProcessPoolExecutor() as pool:
        for replicas, load in CASES:
            found = pool.map(replayed, *zip(*((replicas, load, rule) for rule in rules), strict=True))
            told = dict(zip(rules, found, strict=True))
            print(replicas, load, {rule: f"{each['p99']:.2f}" for rule, each in told.items()}, flush=True)
            seconds = CALLS / calls_per_second(replicas, load)
            cases.append({"replicas": replicas, "load": load, "seconds": seconds, "rules": told})
    facts = {"calls": CALLS, "warm_up": WARM_UP, "deadline": DEADLINE, "seed": SEED}
    return {"balancing": cases, **facts, "simulated": report.now()}


def replayed(replicas: int, load: float, rule: str) -> dict[str, Any]:
    """The figures of the calls that came after the warm-up."""
    setup, rate = Setup(measured("base-int8"), deadline=DEADLINE), calls_per_second(replicas, load)
    seconds = WARM_UP + CALLS / rate
    arrivals = loads.poisson(lambda at: rate, rate, seconds, SIZES, random.Random(SEED))
    name, stale = ("least-queued", STALE) if rule == TOLD_LATE else (rule, 0.0)
    found = replay(arrivals, [setup] * replicas, name, seed=SEED, stale=stale)
    outcomes = [each for each in found.outcomes if each.arrival.at >= WARM_UP]
    took = sorted(each.seconds for each in outcomes if each.code == ANSWERED)
    refused = Counter(each.code for each in outcomes if each.code != ANSWERED)
    shares = {f"p{share}": percentile(took, share / 100) for share in (50, 95, 99)}
    return {"calls": len(outcomes), "answered": len(took), **shares, "refused": dict(sorted(refused.items()))}


SIZES = loads.documents(10, 100)


def calls_per_second(replicas: int, load: float) -> float:
    """The rate that asks for such a share of what the replicas can do."""
    return load * replicas * measured("base-int8").tokens_per_second / loads.mean_tokens(SIZES)
