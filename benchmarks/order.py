"""What part of every batch should be shared equally: a simulation around the service's scheduler.

    python -m benchmarks.order

The rest of a batch goes to the call that needs fewest tokens. The device is a
formula, a fixed cost a batch and one a token, with the figures of
bge-reranker-base on two cores; documents have W2's lengths. A slowdown is the
time of a call ÷ its time on an idle device.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from benchmarks import report
from rerank_grpc.engine.future import Future
from rerank_grpc.engine.scheduler import Scheduler
from rerank_grpc.sequence import Sequence

BUDGET = 1_024
FIXED_SECONDS, TOKENS_PER_SECOND = 0.02, 2_000.0
QUERY_TOKENS = 16
SECONDS = 1_200.0  # of each load
NUMBERS = count()

Load = Callable[[random.Random], "Arrivals"]


def shared(equal_part: float) -> Scheduler:
    """The scheduler with another part of every batch for those that have received least."""
    return Scheduler(max_batch_tokens=BUDGET, max_queue_tokens=1 << 40, equal_share=equal_part)


ORDERS = {
    "equal shares": 1.0,
    "half in equal shares": 1 / 2,
    "a quarter": 1 / 4,
    "an eighth": 1 / 8,
    "fewest tokens first": 0.0,
}


@dataclass(frozen=True, slots=True, order=True)
class Arrival:
    """A call of a caller at a time; `again` says whether the caller calls again once it is answered."""

    at: float
    number: int
    tokens: tuple[int, ...]
    kind: str = "all"
    again: bool = False


class Arrivals:
    """Calls to come, in the order of their times; a closed loop adds the next when one is answered."""

    def __init__(self, calls: Iterator[Arrival], again: Callable[[Arrival, float], Arrival] | None = None):
        self.queue = list(calls)
        heapq.heapify(self.queue)
        self._again = again

    def answered(self, call: Arrival, now: float) -> None:
        if self._again is not None and call.again and now < SECONDS:
            heapq.heappush(self.queue, self._again(call, now))


def call(at: float, documents: list[int], *, kind: str = "all", again: bool = False) -> Arrival:
    return Arrival(at, next(NUMBERS), tuple(documents), kind, again)


def passages(chance: random.Random, documents: int) -> list[int]:
    lengths = (QUERY_TOKENS + chance.lognormvariate(4.75, 0.6) for _ in range(documents))
    return [max(1, min(512, round(length))) for length in lengths]


def seconds_of(tokens: int) -> float:
    """What a batch of so many tokens takes."""
    return FIXED_SECONDS + tokens / TOKENS_PER_SECOND


def alone(tokens: tuple[int, ...]) -> float:
    return math.ceil(sum(tokens) / BUDGET) * FIXED_SECONDS + sum(tokens) / TOKENS_PER_SECOND


def simulate(scheduler: Scheduler, arrivals: Arrivals) -> list[tuple[Arrival, float]]:
    """Runs all calls; returns each with its seconds."""
    now, found, inside = 0.0, list[tuple[Arrival, float]](), dict[Future, Arrival]()
    while arrivals.queue or inside:
        while arrivals.queue and (arrivals.queue[0].at <= now or not inside):
            arrival = heapq.heappop(arrivals.queue)
            now = max(now, arrival.at)
            future = Future([Sequence.of([next(NUMBERS), *[0] * (size - 1)]) for size in arrival.tokens])
            scheduler.add(future, now)
            inside[future] = arrival
        batch = scheduler.next_batch(now)
        assert batch is not None
        now += seconds_of(batch.tokens)
        for waiters in scheduler.finish(batch):
            for future, index in waiters:
                future.deliver([(index, 0.5)], now)
        for future in [future for future in inside if future.done]:
            scheduler.discard(future)
            arrival = inside.pop(future)
            found.append((arrival, now - arrival.at))
            arrivals.answered(arrival, now)
    return found


def equal_callers(chance: random.Random) -> Arrivals:
    """Eight callers of 50 documents each, each of which calls again as soon as it is answered."""

    def again(before: Arrival, now: float) -> Arrival:
        return call(now, passages(chance, 50), again=True)

    return Arrivals((call(0.01 * n, passages(chance, 50), again=True) for n in range(8)), again)


def burst(chance: random.Random) -> Arrivals:
    """Eight equal calls of 50 documents at one moment, again when all are done."""
    return Arrivals(call(60 * turn, passages(chance, 50)) for turn in range(20) for _ in range(8))


def closed(chance: random.Random) -> Arrivals:
    """Eight callers of 5 to 40 documents, each of which calls again as soon as it is answered."""

    def documents() -> list[int]:
        return passages(chance, chance.randint(5, 40))

    first = (call(0.01 * n, documents(), again=True) for n in range(8))
    return Arrivals(first, lambda before, now: call(now, documents(), again=True))


def open_loop(share: float) -> Load:
    """W4: calls of 10 to 100 documents at random times, at a share of what the device can do."""

    def load(chance: random.Random) -> Arrivals:
        return Arrivals(stream(chance, share, lambda: chance.randint(10, 100)))

    return load


def skewed(share: float) -> Load:
    """Calls of log-normal numbers of documents, a few of them very large."""

    def load(chance: random.Random) -> Arrivals:
        return Arrivals(
            stream(chance, share, lambda: max(1, min(1_000, round(chance.lognormvariate(3, 1.2)))))
        )

    return load


def stream(
    chance: random.Random, share: float, documents: Callable[[], int], kind: str = "all"
) -> Iterator[Arrival]:
    """Calls as a Poisson process that asks for `share` of the device."""
    sizes = [passages(chance, documents()) for _ in range(4_000)]
    gap = sum(alone(tuple(size)) for size in sizes) / len(sizes) / share
    now = 0.0
    for size in sizes:
        now += chance.expovariate(1 / gap)
        if now > SECONDS:
            return
        yield call(now, size, kind=kind)


def mixed(chance: random.Random) -> Arrivals:
    """W5: a call of 1,000 documents after another, beside calls of one document."""

    def again(before: Arrival, now: float) -> Arrival:
        return call(now, passages(chance, 1_000), kind="large", again=True)

    singles = list(stream(chance, 0.2, lambda: 1, "one document"))
    return Arrivals(iter([call(0, passages(chance, 1_000), kind="large", again=True), *singles]), again)


def flood(chance: random.Random) -> Arrivals:
    """Four callers who call with 5 documents without end, and a call of 200 documents after another."""

    def again(before: Arrival, now: float) -> Arrival:
        return call(now, passages(chance, 200 if before.kind == "large" else 5), kind=before.kind, again=True)

    small = [call(0, passages(chance, 5), kind="small", again=True) for _ in range(4)]
    return Arrivals(iter([*small, call(0, passages(chance, 200), kind="large", again=True)]), again)


LOADS: dict[str, Load] = {
    "8 equal calls at once": burst,
    "8 equal callers, closed loop": equal_callers,
    "8 callers, closed loop, 5–40 documents": closed,
    "W4 at 0.5 of capacity": open_loop(0.5),
    "W4 at 0.8": open_loop(0.8),
    "W4 at 1.2": open_loop(1.2),
    "skewed sizes at 0.8": skewed(0.8),
    "W5: 1,000 documents beside single ones": mixed,
    "flood of 5-document calls beside 200": flood,
}


def main() -> None:
    data: dict[str, dict[str, dict[str, float]]] = {}
    for name, load in LOADS.items():
        for order, equal_part in ORDERS.items():
            found = simulate(shared(equal_part), load(random.Random(7)))
            for kind in sorted({arrival.kind for arrival, _ in found}):
                some = [(arrival, seconds) for arrival, seconds in found if arrival.kind == kind]
                title = name if kind == "all" else f"{name}: {kind}"
                data.setdefault(title, {})[order] = statistics_of(some)
    rows = [
        (name, order, *(f"{value:.1f}" for value in figures.values()))
        for name, orders in data.items()
        for order, figures in orders.items()
    ]
    columns = [*next(iter(next(iter(data.values())).values()))]
    print(report.table(["load", "order", *columns], rows))
    (report.RESULTS / "order.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def statistics_of(found: list[tuple[Arrival, float]]) -> dict[str, float]:
    """Seconds of calls, and the worst slowdown among them."""
    ordered = sorted(seconds for _, seconds in found)
    return {
        "mean": sum(ordered) / len(ordered),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[int(0.99 * (len(ordered) - 1))],
        "longest": ordered[-1],
        "worst slowdown": max(seconds / alone(arrival.tokens) for arrival, seconds in found),
    }


if __name__ == "__main__":
    main()
