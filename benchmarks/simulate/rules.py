"""Balancing rules: which replica gets the next call."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import cycle

from benchmarks.simulate.replica import Replica

Choose = Callable[[], int]


class View:
    """What a balancer knows of its replicas: calls that it sent are exact, seconds as old as `stale` says."""

    def __init__(
        self, replicas: Sequence[Replica], chance: random.Random, clock: Callable[[], float], stale: float
    ) -> None:
        self.replicas, self.chance = replicas, chance
        self._clock, self._stale = clock, stale
        self._looked, self._seconds = float("-inf"), list[float]()

    def calls(self, index: int) -> float:
        """The calls that a replica has not answered yet."""
        return self.replicas[index].calls

    def seconds(self) -> list[float]:
        """The seconds of work that each replica told when they were asked last."""
        if self._clock() - self._looked >= self._stale:
            self._looked, self._seconds = self._clock(), [each.queued_seconds for each in self.replicas]
        return self._seconds

    def least(self, of: Callable[[int], float], indices: Sequence[int]) -> int:
        """The index with the least value; chance decides among equals."""
        values = [of(index) for index in indices]
        least = min(values)
        return self.chance.choice(
            [index for index, value in zip(indices, values, strict=True) if value == least]
        )


def at_random(view: View) -> Choose:
    return lambda: view.chance.randrange(len(view.replicas))


def round_robin(view: View) -> Choose:
    turns = cycle(range(len(view.replicas)))
    return lambda: next(turns)


def least_connections(view: View) -> Choose:
    everyone = range(len(view.replicas))
    return lambda: view.least(view.calls, everyone)


def two_choices(view: View) -> Choose:
    """The one of two drawn by chance that has fewer calls."""
    everyone = range(len(view.replicas))
    return lambda: view.least(view.calls, view.chance.sample(everyone, min(2, len(everyone))))


def least_queued(view: View) -> Choose:
    """The one with the least seconds of work, as told last."""
    everyone = range(len(view.replicas))
    return lambda: view.least(view.seconds().__getitem__, everyone)


RULES: dict[str, Callable[[View], Choose]] = {
    "random": at_random,
    "round-robin": round_robin,
    "least-connections": least_connections,
    "two-choices": two_choices,
    "least-queued": least_queued,
}
