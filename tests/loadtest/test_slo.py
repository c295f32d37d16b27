"""Limits are read as people write them; a failed call is late for each."""

import pytest

from rerank_grpc.loadtest.slo import LatencyLimit, Objective


def test_limits_are_read():
    found = Objective.of("p99=500ms, p50<=0.2s,errors<1%")
    assert found == Objective((LatencyLimit(99, 0.5), LatencyLimit(50, 0.2)), 0.01)
    assert str(found) == "p99 ≤ 500 ms, p50 ≤ 200 ms, errors ≤ 1 %"
    assert found.call_seconds == 0.5
    assert Objective.of("p99.9=2s").least_calls == 3_000
    assert Objective.of("p99=2s").least_calls == 300


@pytest.mark.parametrize("text", ["", "p99", "p99=500", "p100=1s", "p0=1s", "p99=0ms", "errors<1", "p99=1s,"])
def test_what_is_no_limit_is_told(text):
    with pytest.raises(ValueError, match="is none of p99=500ms"):
        Objective.of(text)


def test_a_failed_call_is_late():
    objective = Objective.of("p90=100ms")
    assert objective.missed([0.05] * 90 + [0.2] * 10, failed=0) == []
    assert objective.missed([0.05] * 90 + [0.2] * 9, failed=1) == []
    assert objective.missed([0.05] * 89, failed=11) == [
        "p90 ≤ 100 ms: 89.0% of the calls were answered in time"
    ]
    assert objective.missed([], failed=0) == ["no call ended"]


def test_errors_have_a_limit_of_their_own():
    objective = Objective.of("errors<1%")
    assert objective.missed([9.0] * 99, failed=1) == []
    assert objective.missed([9.0] * 98, failed=2) == ["errors ≤ 1.000%: 2.00% of the calls failed"]
