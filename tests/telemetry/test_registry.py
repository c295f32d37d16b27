"""What is told is counted before the next scrape, by whoever has the time."""

import threading

from prometheus_client import Counter

from rerank_grpc.telemetry.registry import MOST_WAITING, MetricsRegistry


def test_what_waits_is_counted_before_a_scrape() -> None:
    registry = MetricsRegistry()
    counter = Counter("told", "What was told.", registry=registry)
    tell = registry.later(counter.inc)
    tell(3)
    assert counter._value.get() == 0
    assert registry.get_sample_value("told_total") == 3


def test_not_many_values_wait() -> None:
    counted = list[int]()
    tell = MetricsRegistry().later(counted.append)
    for number in range(MOST_WAITING - 1):
        tell(number)
    assert counted == []
    tell(MOST_WAITING - 1)
    assert counted == [*range(MOST_WAITING)]


def test_threads_that_tell_and_scrape_at_once_lose_nothing() -> None:
    registry = MetricsRegistry()
    counter = Counter("told", "What was told.", registry=registry)
    tell = registry.later(counter.inc)

    def tell_often() -> None:
        for _ in range(2_000):
            tell(1)
            registry.get_sample_value("told_total") if not _ % 100 else None

    threads = [threading.Thread(target=tell_often) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.get_sample_value("told_total") == 16_000


def test_no_series_tells_when_another_was_made() -> None:
    registry = MetricsRegistry()
    Counter("told", "What was told.", registry=registry).inc()
    assert [sample.name for metric in registry.collect() for sample in metric.samples] == ["told_total"]
