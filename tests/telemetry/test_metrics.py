"""What a record of a call, and of a batch, adds to the metrics."""

import threading

import pytest

from rerank_grpc.callers import Caller
from rerank_grpc.errors import Reason
from rerank_grpc.telemetry.families import OTHER, REFUSED
from rerank_grpc.telemetry.ids import CallIds
from rerank_grpc.telemetry.metrics import MOST_CALLERS, MOST_LEARNED, Metrics
from rerank_grpc.telemetry.records import BatchRecord, CallRecord
from rerank_grpc.telemetry.registry import MetricsRegistry
from rerank_grpc.types import RerankSummary, Timeline

LABELS = {
    "method": "Rerank",
    "protocol": "grpc",
    "dialect": "",
    "model": "one",
    "code": "OK",
    "reason": "",
    "caller": "",
}


class Watched:
    """Metrics of two models in a registry of their own."""

    def __init__(self) -> None:
        self.registry = MetricsRegistry()
        self.metrics = Metrics(self.registry, ["one", "two"])

    def value(self, name: str, **labels: str) -> float:
        """Reads a series; 0 where there is none."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def total(self, name: str) -> float:
        """Adds up all series of a name."""
        samples = (sample for metric in self.registry.collect() for sample in metric.samples)
        return sum(sample.value for sample in samples if sample.name == name)

    def series(self) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        """Lists all series."""
        samples = (sample for metric in self.registry.collect() for sample in metric.samples)
        return {(sample.name, tuple(sorted(sample.labels.items()))) for sample in samples}

    def stages(self, name: str) -> dict[str, float]:
        """Reads what was observed of each stage: the number or the sum, to a microsecond."""
        samples = (sample for metric in self.registry.collect() for sample in metric.samples)
        full = f"rerank_stage_duration_seconds_{name}"
        return {
            sample.labels["stage"]: round(sample.value, 6)
            for sample in samples
            if sample.name == full and sample.labels["model"] == "one" and sample.value
        }


@pytest.fixture
def watched() -> Watched:
    return Watched()


def finished(model: str = "one") -> Timeline:
    """A request that came through all stages, within 15 s."""
    timeline = Timeline(100.0, model, 101.0, 103.0, 106.0, 110.0)
    timeline.documents, timeline.pairs, timeline.tokens = 3, 5, 700
    timeline.truncated, timeline.shared = 2, 1
    return timeline


def record_of(*timelines: Timeline, **fields: object) -> CallRecord:
    record = CallRecord("Rerank", CallIds(), started=100.0, seconds=15.0, timelines=list(timelines))
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def test_an_answered_call_counts_with_its_time_its_stages_and_what_it_brought(watched: Watched):
    watched.metrics.call(record_of(finished(), documents=3, summary=RerankSummary("one")))
    assert watched.value("rerank_calls_total", **LABELS) == 1
    seconds = {"method": "Rerank", "protocol": "grpc", "model": "one"}
    assert watched.value("rerank_call_duration_seconds_sum", **seconds) == 15
    assert watched.value("rerank_call_duration_seconds_bucket", le="10.0", **seconds) == 0
    assert watched.value("rerank_call_duration_seconds_bucket", le="30.0", **seconds) == 1
    assert watched.stages("sum") == {
        "admission": 1,
        "tokenize": 2,
        "queue": 3,
        "inference": 4,
        "answer": 5,
    }
    assert watched.value("rerank_pairs_total", model="one") == 5
    for name, count in {"documents": 3, "tokens": 700}.items():
        assert watched.value(f"rerank_{name}_total", model="one", caller="") == count
    assert watched.value("rerank_truncated_documents_total", model="one") == 2
    assert watched.value("rerank_shared_pairs_total", model="one") == 1
    assert watched.total("rerank_refusals_total") == 0


@pytest.mark.parametrize(
    ("reached", "stages"),
    [
        ({}, []),
        ({"admitted": 101.0}, ["admission"]),
        ({"admitted": 101.0, "tokenized": 102.0}, ["admission", "tokenize"]),
        ({"admitted": 101.0, "tokenized": 102.0, "started": 103.0}, ["admission", "queue", "tokenize"]),
    ],
)
def test_a_stage_that_was_not_left_behind_has_no_time(
    watched: Watched, reached: dict[str, float], stages: list[str]
):
    timeline = Timeline(100.0, "one")
    for name, time in reached.items():
        setattr(timeline, name, time)
    watched.metrics.call(record_of(timeline, code="DEADLINE_EXCEEDED", reason=Reason.DEADLINE_EXCEEDED))
    assert sorted(watched.stages("count")) == stages
    assert watched.total("rerank_documents_total") == 0


def test_the_stages_of_a_call_with_several_requests_count_for_each_and_its_answer_once(watched: Watched):
    watched.metrics.call(record_of(finished(), finished(), finished(), summary=RerankSummary("one")))
    assert watched.stages("count") == dict.fromkeys(("admission", "tokenize", "queue", "inference"), 3) | {
        "answer": 1
    }
    assert watched.value("rerank_calls_total", **LABELS) == 1
    assert watched.value("rerank_pairs_total", model="one") == 15


def test_what_rest_tells_of_is_not_counted_again_but_for_its_stages(watched: Watched):
    ids = CallIds(told_by_rest=True)
    watched.metrics.call(record_of(finished(), ids=ids, summary=RerankSummary("one")))
    watched.metrics.call(record_of(ids=ids, code="RESOURCE_EXHAUSTED", reason=Reason.QUEUE_FULL))
    watched.metrics.call(record_of(ids=ids, code="UNAUTHENTICATED", reason=Reason.UNAUTHENTICATED))
    for name in (
        "rerank_calls_total",
        "rerank_call_duration_seconds_count",
        "rerank_refusals_total",
        "rerank_authentication_failures_total",
    ):
        assert watched.total(name) == 0
    assert watched.value("rerank_pairs_total", model="one") == 5
    assert len(watched.stages("count")) == 5


def test_a_call_counts_for_its_caller_by_name(watched: Watched):
    watched.metrics.call(record_of(finished(), summary=RerankSummary("one"), caller=Caller("shop")))
    limited = {"code": "RESOURCE_EXHAUSTED", "reason": Reason.RATE_LIMITED}
    watched.metrics.call(record_of(Timeline(100.0, "one"), caller=Caller("shop"), **limited))
    assert watched.value("rerank_calls_total", **LABELS | {"caller": "shop"}) == 1
    assert watched.value("rerank_documents_total", model="one", caller="shop") == 3
    assert watched.value("rerank_tokens_total", model="one", caller="shop") == 700
    assert watched.value("rerank_refusals_total", reason="rate_limited", caller="shop") == 1


def test_callers_beyond_the_first_count_together(watched: Watched):
    for number in range(MOST_CALLERS + 10):
        watched.metrics.call(record_of(summary=RerankSummary("one"), caller=Caller(f"caller {number}")))
    watched.metrics.call(record_of(summary=RerankSummary("one"), caller=Caller("caller 0")))
    assert watched.value("rerank_calls_total", **LABELS | {"caller": "caller 0"}) == 2
    assert watched.value("rerank_calls_total", **LABELS | {"caller": OTHER}) == 10


def test_a_call_over_rest_counts_with_its_dialect(watched: Watched):
    record = record_of(method="rerank", protocol="rest", dialect="nim", summary=RerankSummary("two"))
    watched.metrics.call(record)
    labels = LABELS | {"method": "rerank", "protocol": "rest", "dialect": "nim", "model": "two"}
    assert watched.value("rerank_calls_total", **labels) == 1


def test_where_other_servers_have_the_models_the_first_names_that_they_answer_with_count():
    registry = MetricsRegistry()
    metrics = Metrics(registry)
    failed = record_of(method="rerank", protocol="rest", code="UNAVAILABLE", known_model="canary")
    metrics.call(failed)
    for number in range(MOST_LEARNED + 10):
        metrics.call(record_of(method="rerank", protocol="rest", summary=RerankSummary(f"model {number}")))
    failed.known_model = "model 3"
    metrics.call(failed)
    calls = {"method": "rerank", "protocol": "rest", "dialect": "", "reason": "", "caller": ""}

    def count(model: str, code: str) -> float | None:
        return registry.get_sample_value("rerank_calls_total", calls | {"model": model, "code": code})

    assert count("model 0", "OK") == count(f"model {MOST_LEARNED - 1}", "OK") == 1
    assert count("model 3", "UNAVAILABLE") == 1
    assert (count(OTHER, "OK"), count(OTHER, "UNAVAILABLE")) == (10, 1)
    assert count(f"model {MOST_LEARNED}", "OK") is count("canary", "UNAVAILABLE") is None


def test_a_stream_whose_caller_left_was_cancelled(watched: Watched):
    left = {"code": "CANCELLED", "reason": Reason.CANCELLED, "left": True}
    watched.metrics.call(record_of(Timeline(100.0, "one"), **left))
    labels = LABELS | {"code": "CANCELLED", "reason": "cancelled"}
    assert watched.value("rerank_calls_total", **labels) == 1


@pytest.mark.parametrize("reason", Reason)
def test_refusals_are_those_that_a_later_call_or_a_token_mends(watched: Watched, reason: Reason):
    watched.metrics.call(record_of(code="UNAVAILABLE", reason=reason))
    assert watched.value("rerank_refusals_total", reason=reason.name.lower(), caller="") == (
        reason in REFUSED
    )
    assert watched.total("rerank_refusals_total") == (reason in REFUSED)


@pytest.mark.parametrize("protocol", ["grpc", "rest", "tei", "kserve"])
def test_a_call_without_an_accepted_token_is_an_authentication_failure(watched: Watched, protocol: str):
    watched.metrics.call(record_of(protocol=protocol, code="UNAUTHENTICATED", reason=Reason.UNAUTHENTICATED))
    assert watched.value("rerank_authentication_failures_total", protocol=protocol) == 1
    assert watched.total("rerank_authentication_failures_total") == 1


def test_no_text_of_a_callers_makes_a_series(watched: Watched):
    def strange(number: int) -> CallRecord:
        text = f"canary-{number}"
        fields = {"method": text, "protocol": "rest", "dialect": text, "code": text}
        return record_of(finished(text), summary=RerankSummary(text), **fields)

    watched.metrics.call(strange(0))
    watched.metrics.batch(BatchRecord("canary", 10, 20, 1, 1.0, 2.0, 1.0))
    before = watched.series()
    for number in range(1, 1_000):
        watched.metrics.call(strange(number))
    assert watched.series() == before
    assert "canary" not in repr(before)
    labels = {"method": OTHER, "protocol": "rest", "dialect": OTHER, "model": OTHER, "code": OTHER}
    assert watched.value("rerank_calls_total", reason="", caller="", **labels) == 1_000


def test_a_batch_counts_its_tokens_its_fill_and_its_time(watched: Watched):
    watched.metrics.batch(BatchRecord("one", 600, 1_000, 7, 5.0, 5.3, 0.2))
    assert watched.value("rerank_batch_tokens_sum", model="one") == 600
    assert watched.value("rerank_batch_tokens_bucket", model="one", le="512.0") == 0
    assert watched.value("rerank_batch_tokens_bucket", model="one", le="1024.0") == 1
    assert watched.value("rerank_batch_fill_ratio_sum", model="one") == 0.6
    assert watched.value("rerank_batch_duration_seconds_sum", model="one") == pytest.approx(0.3)


def test_what_is_known_before_the_first_call_begins_at_0(watched: Watched):
    series = watched.series()
    assert ("rerank_refusals_total", (("caller", ""), ("reason", "queue_full"))) in series
    assert ("rerank_tokens_total", (("caller", ""), ("model", "two"))) in series
    assert ("rerank_stage_duration_seconds_count", (("model", "two"), ("stage", "queue"))) in series


def test_no_series_tells_when_another_was_made(watched: Watched):
    assert [name for name, _ in watched.series() if name.endswith("_created")] == []


def test_the_processs_own_metrics_are_there(watched: Watched):
    names = {name for name, _ in watched.series()}
    assert {"process_cpu_seconds_total", "python_info", "python_gc_collections_total"} <= names


def test_two_registries_know_nothing_of_each_other(watched: Watched):
    other = Watched()
    other.metrics.call(record_of())
    assert (watched.total("rerank_calls_total"), other.total("rerank_calls_total")) == (0, 1)


def test_calls_of_many_threads_are_all_counted(watched: Watched):
    def call() -> None:
        for _ in range(200):
            watched.metrics.call(record_of(finished(), summary=RerankSummary("one")))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watched.value("rerank_calls_total", **LABELS) == 1_600
    assert watched.value("rerank_pairs_total", model="one") == 8_000
