"""The driver against real servers: in time, complete, and ended early where that is asked for."""

import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import pytest

from benchmarks.fixed_service import fixed_service
from rerank_grpc.loadtest.driver import Cut, Driver, Record
from rerank_grpc.loadtest.measures import figures_of
from rerank_grpc.loadtest.plan import PlannedCall, arrivals
from rerank_grpc.loadtest.slo import Objective
from rerank_grpc.loadtest.texts import CallTexts
from tests.loadtest.support import over_grpc
from tests.support import WAIT, wait_for


def beginning(begun: list[float]) -> type[Driver]:
    """Makes a driver that notes the planned time of each call when it is sent."""

    class Beginning(Driver):
        async def _one(self, planned: float, body: bytes, documents: int) -> None:
            begun.append(planned)
            await super()._one(planned, body, documents)

    return Beginning


def holding(held: Callable[[int], bool], until: Callable[[], bool]) -> Callable[[int], None]:
    """Makes a service keep some calls, and with each all behind it, until something is so."""

    def hold(number: int) -> None:
        if held(number):
            wait_for(until)

    return hold


@pytest.mark.usefixtures("unhurried")
def test_every_planned_call_is_sent_once_and_answered():
    plan = arrivals("poisson", 200.0, 0.2, 1.0, random.Random(1), 0)
    with fixed_service(0.0) as (target, service):
        record = over_grpc(target, lambda driver: driver.open_loop(plan, 0.2, 1.0))
    assert service.calls == len(plan)
    assert sorted(each.planned for each in record.outcomes) == [call.at for call in plan]
    assert {each.reason for each in record.outcomes} == {""}
    assert all(each.planned <= each.sent <= each.ended for each in record.outcomes)
    assert {each.tokens for each in record.outcomes} == {7}


@pytest.mark.usefixtures("unhurried")
def test_sending_waits_for_no_answer():
    """All but four get an answer only when the last one is sent."""
    plan, begun = [PlannedCall(0.01 * place, place) for place in range(20)], list[float]()
    hold = holding(lambda number: number == 4, lambda: len(begun) == 20)
    with fixed_service(0.0, hold) as (target, _):
        record = over_grpc(target, lambda driver: driver.open_loop(plan, 0.0, 0.3), kind=beginning(begun))
    assert {each.reason for each in record.outcomes} == {""}
    last = max(each.sent for each in record.outcomes)
    assert sum(last < each.ended for each in record.outcomes) >= 16
    assert len(record.outcomes) == 20


def test_callers_in_turn_each_have_one_call():
    with fixed_service(0.02) as (target, service):
        record = over_grpc(target, lambda driver: driver.closed_loop(3, 0.1, 0.6, first=0))
    assert len(record.outcomes) == service.calls
    for each in record.outcomes:
        beside = [one for one in record.outcomes if one.sent <= each.sent < one.ended]
        assert len(beside) <= 3
    assert figures_of(record, Objective(), callers=3).late_p99 is None


@pytest.mark.usefixtures("unhurried")
def test_failures_are_counted_by_their_reason():
    codes = {
        0: grpc.StatusCode.UNAVAILABLE,
        1: grpc.StatusCode.RESOURCE_EXHAUSTED,
        2: grpc.StatusCode.INTERNAL,
    }
    plan = [PlannedCall(0.01 * place, place) for place in range(30)]
    with fixed_service(0.0, lambda number: codes.get(number % 10)) as (target, service):
        record = over_grpc(target, lambda driver: driver.open_loop(plan, 0.0, 0.4))
    assert service.calls == 30  # nothing is sent again
    figures = figures_of(record, Objective(), rate=100.0)
    assert figures.errors == {"ServerUnavailable": 3, "RESOURCE_EXHAUSTED": 3, "INTERNAL": 3}
    assert figures.answered == 21


@pytest.mark.usefixtures("unhurried")
def test_a_call_without_an_answer_ends_with_its_deadline():
    with fixed_service(5.0) as (target, _):
        record = over_grpc(
            target, lambda driver: driver.open_loop([PlannedCall(0.0, 0)], 0.0, 0.1), timeout=0.3
        )
    assert [each.reason for each in record.outcomes] == ["DEADLINE_EXCEEDED"]


@pytest.mark.usefixtures("unhurried")
def test_an_interrupted_step_keeps_what_is_over():
    """Ten are answered, the last of them when others are on their way, which are never answered."""
    plan, begun, over = (
        arrivals("constant", 50.0, 0.0, 60.0, random.Random(1), 0),
        list[float](),
        threading.Event(),
    )
    hold = holding(lambda number: number >= 9, lambda: len(begun) >= 15 or over.is_set())

    def answer(number: int) -> None:
        hold(number)
        assert number < 10 or over.wait(WAIT)

    with fixed_service(0.0, answer) as (target, _):
        try:
            record = over_grpc(
                target, lambda driver: driver.open_loop(plan, 0.0, 60.0), stop_after=10, kind=beginning(begun)
            )
        finally:
            over.set()
    assert record.cut_short == "Ctrl-C"
    assert len(record.outcomes) == 10
    assert record.unfinished >= 5
    assert 0.2 < record.seconds < 60
    assert figures_of(record, Objective(), rate=50.0).answered >= 9


@pytest.mark.usefixtures("unhurried")
def test_a_server_that_answers_nothing_ends_the_step(monkeypatch):
    monkeypatch.setattr("rerank_grpc.loadtest.driver.HOPELESS_SECONDS", 0.3)
    plan = arrivals("constant", 100.0, 0.0, 60.0, random.Random(1), 0)

    def fail(number):
        return grpc.StatusCode.INTERNAL if number >= 20 else None

    with fixed_service(0.0, fail) as (target, _):
        record = over_grpc(target, lambda driver: driver.open_loop(plan, 0.0, 60.0))
    assert re.fullmatch(r"no call was answered for \d+ s", record.cut_short)
    assert record.seconds < 20
    assert sum(not each.reason for each in record.outcomes) == 20


def test_a_driver_far_behind_its_plan_ends_the_step_and_says_that_it_cannot_be_trusted() -> None:
    plan = [PlannedCall(place / 1_000, place) for place in range(-5_000, 1_000)]
    with fixed_service(0.0) as (target, _):
        record = over_grpc(target, lambda driver: driver.open_loop(plan, 0.0, 1.0))
    assert record.cut is Cut.BEHIND
    assert re.fullmatch(r"the driver was \d+\.\d s behind its plan", record.cut_short)
    doubt, *_ = figures_of(record, Objective(), rate=1_000.0).doubts
    assert doubt.startswith("the driver cannot send so much: ask for a lower rate")


def test_a_driver_behind_its_plan_still_sends() -> None:
    """Each call begins when at most the next one's texts are made, however late all of them are."""
    ahead = list[int]()

    class Counting(Driver):
        async def open_loop(self, plan: Sequence[PlannedCall], warm_up: float, seconds: float) -> Record:
            texts, self.made = self._texts, 0

            class Counted:
                def call(_, number: int) -> CallTexts:
                    self.made += 1
                    return texts.call(number)

                def describe(_) -> dict[str, Any]:
                    return texts.describe()

            self._texts = Counted()
            return await super().open_loop(plan, warm_up, seconds)

        async def _one(self, planned: float, body: bytes, documents: int) -> None:
            ahead.append(self.made - len(ahead))
            await super()._one(planned, body, documents)

    plan = [PlannedCall(-0.2, place) for place in range(1_000)]  # all are late when they are sent
    with fixed_service(0.0) as (target, _):
        over_grpc(target, lambda driver: driver.open_loop(plan, 0.0, 20.0), kind=Counting, stop_after=None)
    assert len(ahead) == 1_000
    assert max(ahead) <= 2


# Beside the queue that it should be


def beside_the_queue(manner, seed):
    """Measures one round in a process of its own; returns the driver's lateness, and the ratios."""
    command = [sys.executable, "-m", "tests.loadtest.rounds", manner, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(done.stdout)
    return told["late"], told["ratios"]


def agrees(ratios):
    return all(abs(ratio - 1) <= 0.05 for ratio in ratios.values())


@pytest.mark.clock
def test_percentiles_are_those_of_the_simulated_queue():
    # Others may use the processors meanwhile: of the rounds that one counts whose calls were sent in time.
    late, ratios = min(beside_the_queue("planned", seed) for seed in range(2))
    assert agrees(ratios), f"calls were {1000 * late:.2f} ms late, percentiles ÷ the queue's: {ratios}"


@pytest.mark.clock
def test_a_driver_that_waits_for_answers_is_caught_by_the_simulated_queue():
    _, ratios = beside_the_queue("in-turn", 0)
    assert not agrees(ratios)
    assert ratios["99"] < 0.7
