"""The registry of a process's metrics, and what is counted in it later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Metric

Told = TypeVar("Told")

# That wait to be counted: then a caller's thread counts them, which takes it a millisecond.
MOST_WAITING = 64


class MetricsRegistry(CollectorRegistry):
    """A registry that has all counted that waits for it, before a scrape.

    It has no series `…_created`: the library would make one beside each other one, and its own switch for
    them is the whole process's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._flushes = list[Callable[[], None]]()

    def later(self, count: Callable[[Told], None]) -> Later[Told]:
        """Makes what has values counted before the next scrape."""
        later = Later(count)
        self._flushes.append(later.flush)
        return later

    def collect(self) -> Iterable[Metric]:
        """Yields every metric without its time of creation."""
        for flush in self._flushes:
            flush()
        for metric in super().collect():
            metric.samples = [each for each in metric.samples if not each.name.endswith("_created")]
            yield metric


class Later(Generic[Told]):
    """Takes values from any thread, and has many of them counted at once.

    After a pass through a model no code is in the processor's caches: what takes 40 microseconds in a loop
    takes ten times as long between two calls.
    """

    def __init__(self, count: Callable[[Told], None]) -> None:
        self._count = count
        self._waiting = deque[Told]()

    def __call__(self, value: Told) -> None:
        self._waiting.append(value)
        if len(self._waiting) >= MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Counts what waits; threads that do so at once share it."""
        waiting = self._waiting
        while waiting:
            try:
                value = waiting.popleft()
            except IndexError:  # another thread was faster
                return
            self._count(value)
