"""The metrics of a registry on a free port, and collectors that can be counted, held and broken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Metric

from rerank_grpc.http.metrics import metrics_server
from tests.rest.support import HOST
from tests.support import WAIT


class ScriptedCollector:
    """Collects one gauge, `value`, after it has done what the test wants it to."""

    def __init__(self, before: Callable[[], object] = lambda: None, size: int = 0) -> None:
        self._before = before
        self._meaning = "x" * size
        self.scrapes = 0

    def collect(self) -> Iterable[Metric]:
        """Yields how many scrapes there were, this one included."""
        self._before()
        self.scrapes += 1
        metric = Metric("value", self._meaning, "gauge")
        metric.add_sample("value", {}, self.scrapes)
        yield metric


@contextmanager
def scraped(*collectors: ScriptedCollector) -> Iterator[int]:
    """Serves what the collectors collect for as long as the block runs; yields the port."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    server = metrics_server(registry, HOST, 0)
    server.start()
    try:
        yield server.port
    finally:
        server.stop(0, end_seconds=WAIT)
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]
