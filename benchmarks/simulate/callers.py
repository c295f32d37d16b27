"""What each of several callers gets of a replica: known by name, and all alike to the server.

    python -m benchmarks.simulate.callers

Each connection of a caller calls again as soon as it is answered, and a second after a refusal. The replica
is that of the simulator, around the service's own gate, queue and scheduler; a call waits for nobody's
deadline. Writes results/callers.md and results/callers.json.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count

import simpy

from benchmarks import report
from benchmarks.simulate import loads
from benchmarks.simulate.costs import given
from benchmarks.simulate.loads import Arrival
from benchmarks.simulate.replay import percentile
from benchmarks.simulate.replica import ANSWERED, Outcome, Replica, Setup, Steps

SECONDS = 1_200.0
WARM_SECONDS = 200.0  # at the beginning, which are not counted
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """A caller with so many connections, on each of which a call of so many documents follows the other."""

    name: str
    connections: int
    documents: int


@dataclass(frozen=True, slots=True)
class Got:
    """What a caller got: its share of all tokens, its calls, and the seconds of those that were answered."""

    share: float
    answered: int
    refused: int
    mean: float
    p99: float


CASES: dict[str, Sequence[Load]] = {
    "A: 100 connections, 5 documents; B: one connection, 1 document": [Load("A", 100, 5), Load("B", 1, 1)],
    "A: 100 connections, 5 documents; B: one connection, 5 documents": [Load("A", 100, 5), Load("B", 1, 5)],
    "A: 90 connections, 5 documents; B: one connection, 50 documents": [Load("A", 90, 5), Load("B", 1, 50)],
    "A: 5 connections, 500 documents; B: one connection, 10 documents": [Load("A", 5, 500), Load("B", 1, 10)],
    "A, B: 40 connections each, 5 documents": [Load("A", 40, 5), Load("B", 40, 5)],
    "A: 60 connections, 5 documents; B: 6, 20; C: one, 100": [
        Load("A", 60, 5),
        Load("B", 6, 20),
        Load("C", 1, 100),
    ],
}


def run(callers: Sequence[Load], *, named: bool, seconds: float = SECONDS) -> dict[str, Got]:
    """Runs one case; without names the server takes all calls for one caller's."""
    env = simpy.Environment()
    replica = Replica(env, Setup(given("base-bf16"), deadline=math.inf))
    numbers, outcomes = count(), {load.name: list[Outcome]() for load in callers}

    def connection(load: Load, chance: random.Random) -> Steps:
        sizes = loads.documents(load.documents, load.documents)
        own = outcomes[load.name]
        while env.now < seconds:
            name = load.name if named else ""
            yield from replica.answer(Arrival(env.now, sizes(chance), next(numbers), name), 0, own)
            if own[-1].code != ANSWERED:
                yield env.timeout(RETRY_SECONDS)

    for load in callers:
        for index in range(load.connections):
            env.process(connection(load, random.Random(f"{load.name} {index}")))
    env.run(until=seconds)
    ended = {
        name: [each for each in found if each.arrival.at >= min(WARM_SECONDS, seconds / 2)]
        for name, found in outcomes.items()
    }
    tokens = {
        name: sum(sum(each.arrival.tokens) for each in answered(found)) for name, found in ended.items()
    }
    return {name: got(found, tokens[name] / sum(tokens.values())) for name, found in ended.items()}


def answered(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [each for each in outcomes if each.code == ANSWERED]


def got(outcomes: Sequence[Outcome], share: float) -> Got:
    seconds = sorted(each.seconds for each in answered(outcomes))
    mean = sum(seconds) / len(seconds) if seconds else math.nan
    return Got(share, len(seconds), len(outcomes) - len(seconds), mean, percentile(seconds, 0.99))


def main() -> None:
    data: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    rows = []
    for case, callers in CASES.items():
        before, after = run(callers, named=False), run(callers, named=True)
        data[case] = {"all alike": told(before), "by name": told(after)}
        for name in before:
            rows.append([case, name, *cells(before[name]), *cells(after[name])])
    table = report.table(["case", "caller", *(f"{what} {how}" for how in HOW for what in WHAT)], rows)
    print(table)
    (report.RESULTS / "callers.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    (report.RESULTS / "callers.md").write_text(f"{HEAD}\n{table}\n", "utf-8")


HOW = ("all alike", "by name")
WHAT = ("share", "mean s", "p99 s", "refused")
HEAD = """# What callers get beside each other

By `python -m benchmarks.simulate.callers`: a replica with the cost of bge-reranker-base in bf16 on two
cores, 1,000 seconds after 200 to warm up. "All alike" is a server that does not know its callers; share is
that of the tokens that were answered.
"""


def told(found: dict[str, Got]) -> dict[str, dict[str, float]]:
    return {name: asdict(each) for name, each in found.items()}


def cells(found: Got) -> list[str]:
    return [f"{found.share:.1%}", f"{found.mean:.2f}", f"{found.p99:.2f}", f"{found.refused}"]


if __name__ == "__main__":
    main()
