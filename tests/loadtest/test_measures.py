"""Figures of outcomes: percentiles as NumPy's, each call once, and what speaks against the driver."""

import json
import random
from pathlib import Path

import numpy
import pytest

from rerank_grpc.loadtest.chart import draw
from rerank_grpc.loadtest.driver import Outcome, Record
from rerank_grpc.loadtest.measures import doubts, figures_of, percentile, with_interval
from rerank_grpc.loadtest.report import row
from rerank_grpc.loadtest.slo import Objective


@pytest.mark.parametrize("count", [1, 2, 3, 10, 999])
def test_percentiles_are_numpys(count):
    chance = random.Random(count)
    values = sorted(chance.expovariate(1) for _ in range(count))
    for percent in (0, 1, 50, 90, 99, 99.9, 100):
        assert percentile(values, percent) == pytest.approx(numpy.percentile(values, percent), rel=1e-12)


def test_the_interval_holds_the_true_percentile_as_often_as_it_says():
    chance, held = random.Random(2), 0
    for _ in range(1_000):
        values = sorted(chance.random() for _ in range(300))
        _, low, high = with_interval(values, 90)
        assert low is not None
        assert high is not None
        held += low <= 0.9 <= high
    assert 940 <= held <= 985  # whole places make it rather wider


def test_an_interval_without_values_beyond_it_is_open():
    found = with_interval(sorted(map(float, range(100))), 99.9)
    assert found.low is not None
    assert found.high is None


def outcome(planned, latency=0.1, sent=None, **more):
    return Outcome(planned, planned if sent is None else sent, planned + latency, 10, **more)


def test_a_percentile_that_falls_among_failures_is_not_known() -> None:
    # 65 answered at once, 201 failed: of the answered alone the median would be 0.1 s.
    calls = [outcome(1.0) for _ in range(65)] + [outcome(1.0, 0.5, reason="QUEUE_FULL") for _ in range(201)]
    found = figures_of(Record(10.0, calls), Objective(), rate=26.6)
    assert [found.percentile(percent) for percent in (50, 90, 99.9)] == [None] * 3
    assert found.to_json()["latency"]["p50"] == {"value": None, "low": None, "high": None}
    assert found.most == pytest.approx(0.1)
    assert row(found, Objective())[5:11] == ["-", "-", "-", "-", "-", "100.0"]
    calls = [outcome(1.0) for _ in range(80)] + [outcome(1.0, reason="QUEUE_FULL") for _ in range(20)]
    found = figures_of(Record(10.0, calls), Objective(), rate=10.0)
    assert found.percentile(50) == pytest.approx(0.1)
    assert found.percentile(90) is None
    json.dumps(found.to_json(), allow_nan=False)


def test_a_chart_of_nothing_answered_has_no_lines_and_warns_of_nothing(tmp_path: Path) -> None:
    found = figures_of(Record(10.0, [outcome(1.0, reason="timeout")]), Objective(), rate=1.0)
    draw([found], Objective(), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_calls_of_the_warm_up_do_not_count():
    record = Record(10.0, [outcome(-1.0, 0.5), outcome(1.0), outcome(9.95), outcome(11.0)])
    found = figures_of(record, Objective(), rate=1.0)
    assert (found.calls, found.answered) == (2, 2)
    assert found.sent_rate == pytest.approx(0.2)
    assert found.answered_rate == pytest.approx(0.1)  # one ended behind the measured time
    assert found.documents_rate == pytest.approx(1.0)


def test_latency_counts_from_the_planned_time():
    late = [outcome(float(n), latency=0.4, sent=n + 0.3) for n in range(10)]
    found = figures_of(Record(10.0, late), Objective(), rate=1.0)
    assert found.percentile(50) == pytest.approx(0.4)
    assert found.late_p99 == pytest.approx(0.3)
    assert len(found.doubts) == 1


def test_goodput_leaves_out_what_is_late_or_failed():
    calls = [outcome(1.0, 0.1), outcome(2.0, 0.6), outcome(3.0, 0.1, reason="QUEUE_FULL")]
    found = figures_of(Record(10.0, calls), Objective.of("p50=500ms"), rate=0.3)
    assert found.good_rate == pytest.approx(0.1)
    assert found.errors == {"QUEUE_FULL": 1}
    assert found.failed == 1
    assert found.missed == ("p50 ≤ 500 ms: 33.3% of the calls were answered in time",)


def test_the_share_of_cached_pairs_is_that_of_what_tells_it():
    calls = [outcome(1.0, cached=5, tokens=7), outcome(2.0, cached=0, tokens=9), outcome(3.0)]
    found = figures_of(Record(10.0, calls), Objective(), rate=0.3)
    assert found.cached_share == pytest.approx(0.25)
    assert found.tokens_rate == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("late", "median", "busy", "count"),
    [
        (0.001, 0.05, 0.2, 0),
        (0.006, 0.05, 0.2, 1),  # over 5 ms
        (0.002, 0.01, 0.2, 1),  # over a tenth of the median
        (0.02, 1.0, 0.2, 0),  # a twentieth of the median is more than 5 ms
        (None, 1.0, 0.2, 0),
        (0.001, 0.05, 0.9, 1),
    ],
)
def test_a_driver_that_is_late_or_busy_is_doubted(late, median, busy, count):
    assert len(doubts(late, median, busy)) == count


def test_nothing_answered_is_measured_too():
    found = figures_of(Record(10.0, [outcome(1.0, reason="timeout")]), Objective(), rate=1.0)
    assert found.percentile(50) is None
    assert found.most is None
    assert figures_of(Record(0.0, []), Objective(), rate=1.0).calls == 0
