"""The log says once when refusing begins, and once when it is over, by the times of the records."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rerank_grpc.errors import Reason
from rerank_grpc.telemetry.ids import CallIds
from rerank_grpc.telemetry.records import CallRecord
from rerank_grpc.telemetry.refusals import QUIET_SECONDS, REASONS, RefusalLog


def call(ended: float, reason: Reason | None = None, **facts: Any) -> CallRecord:
    """The record of a call that ended at a time."""
    own: dict[str, Any] = {"ids": CallIds(), "reason": reason, "started": ended - 0.5, "seconds": 0.5}
    return CallRecord("Rerank", **own | facts)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.DEBUG, "rerank_grpc.refusals")
    return lambda: [record.getMessage() for record in caplog.records]


def test_refusing_is_told_once_when_it_begins_and_once_when_it_has_been_over_for_long(
    said: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
):
    refusals = RefusalLog()
    for tenth in range(50):
        refusals(call(100 + tenth / 10, Reason.QUEUE_FULL))
    assert said() == ["refusing calls: queue_full"]
    refusals(call(104.9 + QUIET_SECONDS - 0.1))
    assert len(said()) == 1
    refusals(call(104.9 + QUIET_SECONDS))
    refusals(call(104.9 + QUIET_SECONDS))
    assert said()[1:] == ["no longer refusing calls: queue_full (50 in 4.9 s)"]
    begin, end = map(vars, caplog.records)
    assert (begin["event"], begin["reason"]) == ("refusing", "queue_full")
    assert (end["event"], end["reason"], end["calls"], end["seconds"]) == (
        *("refusing_ended", "queue_full"),
        *(50, 4.9),
    )
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_each_reason_has_its_own_beginning_and_end(said: Callable[[], list[str]]):
    refusals = RefusalLog()
    refusals(call(100, Reason.QUEUE_FULL))
    refusals(call(105, Reason.MODEL_LOADING))
    refusals(call(112))
    assert said()[2:] == ["no longer refusing calls: queue_full (1 in 0.0 s)"]
    refusals(call(113, Reason.QUEUE_FULL))
    assert said()[3:] == ["refusing calls: queue_full"]


def test_a_refusal_after_a_long_quiet_ends_one_spell_and_begins_the_next(said: Callable[[], list[str]]):
    refusals = RefusalLog()
    refusals(call(100, Reason.QUEUE_FULL))
    refusals(call(200, Reason.QUEUE_FULL))
    assert said() == [
        "refusing calls: queue_full",
        "no longer refusing calls: queue_full (1 in 0.0 s)",
        "refusing calls: queue_full",
    ]


def test_records_out_of_order_end_nothing_early(said: Callable[[], list[str]]):
    refusals = RefusalLog()
    refusals(call(100, Reason.QUEUE_FULL))
    refusals(call(97, Reason.QUEUE_FULL))
    refusals(call(100 + QUIET_SECONDS - 1))
    assert len(said()) == 1


@pytest.mark.parametrize("reason", [None, *sorted({*Reason} - REASONS)])
def test_a_callers_own_fault_is_no_state_of_the_server(reason: Reason, said: Callable[[], list[str]]):
    RefusalLog()(call(100, reason))
    assert said() == []


def test_a_call_that_rest_tells_of_counts_once(said: Callable[[], list[str]]):
    refusals = RefusalLog()
    refusals(call(100, Reason.QUEUE_FULL, ids=CallIds(told_by_rest=True)))
    assert said() == []
    refusals(call(100, Reason.QUEUE_FULL, protocol="rest"))
    assert said() == ["refusing calls: queue_full"]


def test_the_end_of_the_server_tells_what_has_not_ended(said: Callable[[], list[str]]):
    refusals = RefusalLog()
    refusals(call(100, Reason.SHUTTING_DOWN))
    refusals(call(101, Reason.SHUTTING_DOWN))
    for _ in range(2):
        refusals.close()
    assert said()[1:] == ["no longer refusing calls: shutting_down (2 in 1.0 s)"]


def test_many_threads_lose_no_refusal(said: Callable[[], list[str]]):
    refusals = RefusalLog()

    def refuse() -> None:
        for _ in range(500):
            refusals(call(100, Reason.QUEUE_FULL))

    threads = [threading.Thread(target=refuse) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refusals.close()
    assert said() == ["refusing calls: queue_full", "no longer refusing calls: queue_full (4000 in 0.0 s)"]
