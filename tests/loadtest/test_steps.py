"""The steps of a run against real servers: what a search is told, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import pytest

from benchmarks.fixed_service import fixed_service
from rerank_grpc.client import AsyncClient
from rerank_grpc.loadtest.clock import precise_loop
from rerank_grpc.loadtest.driver import Cut, Stop
from rerank_grpc.loadtest.measures import StepFigures
from rerank_grpc.loadtest.plan import recorded
from rerank_grpc.loadtest.report import Report, outcome
from rerank_grpc.loadtest.search import Search, Verdict
from rerank_grpc.loadtest.slo import Objective
from rerank_grpc.loadtest.steps import Bench, Manner
from rerank_grpc.loadtest.transports.over_grpc import GrpcTransport
from tests.loadtest.support import TEXTS

pytestmark = pytest.mark.usefixtures("unhurried")

Watched = Callable[[Stop, str], None]  # told of the run's stop and of what begins or, as "", of a call's end


def ran(
    target: str,
    manner: Manner,
    search: Search | None = None,
    watch: Watched = lambda *_: None,
    timeout: float = 20.0,
) -> list[StepFigures]:
    """Runs a search, or the recording."""

    async def main() -> list[StepFigures]:
        transport, stop = GrpcTransport(AsyncClient(target, timeout=timeout, retries=0), ""), Stop()
        bench = Bench(
            transport, TEXTS, manner, stop, lambda what, _: watch(stop, what), lambda _: watch(stop, "")
        )
        try:
            if search is None:
                return [await bench.recording()]
            return [each async for each in bench.search(search)]
        finally:
            await transport.close()

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(main())


def manner(slo: str, seconds: float = 0.3, warm_up: float = 0.0) -> Manner:
    return Manner(seconds, warm_up, "constant", 1, Objective.of(slo))


def said(search: Search, slo: str, steps: list[StepFigures]) -> str:
    return outcome(search, Objective.of(slo), steps)


def test_an_interrupt_in_the_warm_up_is_no_missed_objective() -> None:
    search, slo = Search(50, 100), "p50=20s"

    def interrupt(stop: Stop, what: str) -> None:
        if not what:
            stop.set("Ctrl-C")

    with fixed_service(0.0) as (target, _):
        (step,) = ran(target, manner(slo, warm_up=60.0), search, interrupt)
    assert (step.cut, step.calls, step.missed) == (Cut.INTERRUPTED, 0, ())
    assert (search.verdict, search.best) == (None, None)
    assert said(search, slo, [step]) == (
        "the search was cut short: no rate is known to meet p50 ≤ 20 s so far"
    )


def test_an_interrupt_while_confirming_keeps_the_rate_that_was_met() -> None:
    search, slo = Search(20, 40), "p50=20s"

    def interrupt(stop: Stop, what: str) -> None:
        if what.startswith("again, "):
            stop.set("Ctrl-C")

    with fixed_service(0.0) as (target, _):
        steps = ran(target, manner(slo), search, interrupt)
    assert [step.rate for step in steps] == [20, 40, 40]
    assert (search.verdict, search.best) == (None, 40)
    assert said(search, slo, steps) == "the search was cut short: 40 calls/s has met p50 ≤ 20 s so far"


def test_a_rate_at_which_nothing_is_answered_any_more_is_missed_and_the_search_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rerank_grpc.loadtest.driver.HOPELESS_SECONDS", 0.2)
    failing = False

    def begin(_stop: Stop, what: str) -> None:
        # Overloaded, it answers nothing, until it is only asked whether it does again.
        nonlocal failing
        if what.endswith("calls/s"):
            failing = float(what.split()[-2]) > 60
        elif what == "no answer yet, asking again":
            failing = False

    def fail(_number: int) -> grpc.StatusCode | None:
        return grpc.StatusCode.RESOURCE_EXHAUSTED if failing else None

    search = Search(25, 100)
    with fixed_service(0.0, fail) as (target, _):
        steps = ran(target, manner("errors<50%", seconds=2.0), search, begin)
    assert {step.cut for step in steps if (step.rate or 0) > 60} == {Cut.HOPELESS}
    assert search.verdict is Verdict.FOUND
    assert search.best is not None
    assert 60 / 1.05 <= search.best <= 60


def test_a_search_ends_without_a_verdict_where_the_server_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerank_grpc.loadtest.driver.HOPELESS_SECONDS", 0.2)
    monkeypatch.setattr("rerank_grpc.loadtest.steps.RECOVERY_SECONDS", 0.3)
    search, slo, seen = Search(100, 200), "errors<1%", list[str]()

    def fail(number: int) -> grpc.StatusCode | None:
        return grpc.StatusCode.UNAVAILABLE if number >= 20 else None

    with fixed_service(0.0, fail) as (target, _):
        steps = ran(target, manner(slo, 60.0), search, lambda _, what: seen.append(what))
    assert [step.cut for step in steps] == [Cut.HOPELESS]
    assert (search.verdict, search.best) == (None, None)
    assert "no answer yet, asking again" in seen
    assert said(search, slo, steps) == (
        "the search was cut short (no call was answered for 0 s behind 100 calls/s): "
        "no rate is known to meet errors ≤ 1 % so far"
    )
    report = Report({}, Objective.of(slo), search, steps)
    assert not report.is_complete
    assert not report.is_missed


def test_a_recording_is_measured_at_the_rate_that_it_has() -> None:
    plan = recorded([place / 20 for place in range(6)], 0.0, 1.0, None)
    with fixed_service(0.0) as (target, _):
        (step,) = ran(target, Manner(plan.seconds, plan.warm_up, "poisson", 1, Objective(), plan))
    assert (step.calls, step.answered) == (6, 6)
    assert step.rate == pytest.approx(20)
    assert step.sent_rate == pytest.approx(20)
