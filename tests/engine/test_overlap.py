"""The engine with a runner that overlaps: batches are launched ahead, and nothing else changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from rerank_grpc.config.settings import EngineSettings
from rerank_grpc.engine import engine as engine_module
from rerank_grpc.engine.engine import Engine
from rerank_grpc.engine.meter import Watchdog
from rerank_grpc.errors import Cancelled, InternalError, ModelFailed, PairTooLarge, ShuttingDown
from rerank_grpc.runner.runner import Landing, OutOfMemory
from rerank_grpc.sequence import Output, Sequence
from tests.engine.test_engine import outputs, running, sequences
from tests.support import LONG, WAIT, score_of, submit, tokens_of, wait_for


class Ahead:
    """Computes a batch only when it is waited for and the test lets it; tells in `log` what was asked.

    `launched` counts in what has reached the device, `waited` what the engine waits for.
    """

    depth = 2

    def __init__(self, score: Callable[[Sequence], Output | None] = score_of, *, held: bool = False) -> None:
        self.log: list[str] = []
        self.batches: list[tuple[Sequence, ...]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.launched = threading.Semaphore(0)
        self.waited = threading.Semaphore(0)
        self.score = score
        self._passes = threading.Semaphore(0 if held else 1_000_000)

    def launch(self, batch: tuple[Sequence, ...]) -> Landing:
        self.log.append(f"launch {len(self.batches)}")
        flight = partial(self.land, len(self.batches), batch)
        self.batches.append(batch)
        self.in_flight += tokens_of(batch)
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.launched.release()
        return flight

    def land(self, number: int, batch: tuple[Sequence, ...]) -> list[Output | None]:
        self.log.append(f"wait {number}")
        self.waited.release()
        assert self._passes.acquire(timeout=LONG), "the test never let the batch run"
        self.in_flight -= tokens_of(batch)
        return [self.score(sequence) for sequence in batch]

    def await_launch(self, batches: int = 1) -> None:
        for _ in range(batches):
            assert self.launched.acquire(timeout=WAIT), "no batch came"

    def let(self, batches: int = 1) -> None:
        self._passes.release(batches)

    def let_all(self) -> None:
        self.let(1_000_000)


def scored(work: list[Sequence]) -> list[float]:
    return [score_of(sequence) for sequence in work]


def test_a_batch_is_launched_before_the_last_one_is_waited_for():
    runner = Ahead()
    with running(runner, max_batch_tokens=40) as engine:
        work = sequences(8)
        assert outputs(submit(engine, work)) == scored(work)
    assert runner.log == [
        "launch 0",
        "launch 1",
        "wait 0",
        "launch 2",
        "wait 1",
        "launch 3",
        "wait 2",
        "wait 3",
    ]


def test_what_is_in_flight_together_is_no_more_than_one_budget():
    runner = Ahead()
    with running(runner, max_batch_tokens=100) as engine:
        assert engine.max_batch_tokens == 100
        work = sequences(200, tokens=7)
        assert outputs(submit(engine, work)) == scored(work)
    assert 0 < runner.most_in_flight <= 100


def test_a_lone_batch_is_delivered_without_waiting_for_another():
    runner = Ahead()
    with running(runner) as engine:
        for _ in range(3):
            work = sequences(2)
            assert outputs(submit(engine, work)) == scored(work)
    assert runner.log == ["launch 0", "wait 0", "launch 1", "wait 1", "launch 2", "wait 2"]


def test_an_equal_sequence_asked_for_in_flight_is_not_launched_again():
    runner = Ahead(held=True)
    with running(runner) as engine:
        work = sequences(3)
        first = submit(engine, work)
        runner.await_launch()
        second = submit(engine, work)
        runner.let_all()
        assert outputs(first) == outputs(second) == scored(work)
        assert second.shared == 3
    assert len(runner.batches) == 1


class Failing(Ahead):
    """Fails a batch that holds a culprit, when it is launched or when it is waited for."""

    def __init__(self, when: str, culprits: set[Sequence], error: Callable[[], Exception]) -> None:
        super().__init__()
        self.when, self.culprits, self.error = when, culprits, error

    def launch(self, batch: tuple[Sequence, ...]) -> Landing:
        landing = super().launch(batch)
        if self.when == "launch" and self.culprits & set(batch):
            self.in_flight -= tokens_of(batch)
            raise self.error()
        return landing

    def land(self, number: int, batch: tuple[Sequence, ...]) -> list[Output | None]:
        found = super().land(number, batch)
        if self.culprits & set(batch):
            raise self.error()
        return found


@pytest.mark.parametrize("when", ["launch", "result"])
def test_a_failure_in_flight_reaches_its_culprit_alone(when: str):
    works = [sequences(4) for _ in range(8)]
    runner = Failing(when, {works[3][2]}, lambda: RuntimeError("poison"))
    with running(runner, max_batch_tokens=160) as engine:
        requests = [submit(engine, work) for work in works]
        for index, (request, work) in enumerate(zip(requests, works, strict=True)):
            if index == 3:
                with pytest.raises(InternalError):
                    outputs(request)
            else:
                assert outputs(request) == scored(work)
        assert engine.alive


class SmallMemory(Ahead):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def launch(self, batch: tuple[Sequence, ...]) -> Landing:
        landing = super().launch(batch)
        if tokens_of(batch) > self.tokens:
            self.in_flight -= tokens_of(batch)
            raise OutOfMemory
        return landing


def test_r17_out_of_memory_at_a_launch_splits_the_batch_and_is_remembered():
    runner = SmallMemory(tokens=130)
    with running(runner, max_batch_tokens=1000) as engine:
        work, large = sequences(300), sequences(1, tokens=500)
        requests = submit(engine, work), submit(engine, large)
        assert outputs(requests[0]) == scored(work)
        with pytest.raises(PairTooLarge):
            outputs(requests[1])
        assert engine.max_batch_tokens <= 2 * 130
        runner.batches.clear()
        outputs(submit(engine, sequences(300)))
        assert not any(tokens_of(batch) > 130 for batch in runner.batches)


def test_r8_a_call_cancelled_half_way_costs_at_most_one_further_budget():
    runner = Ahead(held=True)
    with running(runner, max_batch_tokens=40) as engine:
        large, small_work = submit(engine, sequences(100)), sequences(30)
        runner.await_launch(2)
        small = submit(engine, small_work)
        runner.let(3)
        runner.await_launch(3)
        large.fail(Cancelled("the caller left"))
        of_large = set(large.sequences)
        before = sum(len(of_large & set(batch)) for batch in runner.batches)
        runner.let_all()
        assert outputs(small) == scored(small_work)
        after = sum(len(of_large & set(batch)) for batch in runner.batches)
    assert after - before <= 4  # a budget of 40 tokens


def test_w5_a_small_call_goes_with_the_next_batch_beside_a_large_one():
    runner = Ahead(held=True)
    with running(runner, max_batch_tokens=200) as engine:
        large = submit(engine, sequences(1_000))
        runner.await_launch(2)
        (single,) = work = sequences(1)
        small = submit(engine, work)
        runner.let()
        runner.await_launch()
        assert single in runner.batches[2]
        assert sum(tokens_of(batch) for batch in runner.batches) <= 300
        runner.let_all()
        assert outputs(small) == scored(work)
        outputs(large)


class Deadly(Ahead):
    def land(self, number: int, batch: tuple[Sequence, ...]) -> list[Output | None]:
        super().land(number, batch)
        raise SystemExit


@pytest.mark.parametrize("dies", [True, False], ids=["dies", "hangs"])
def test_r18_with_batches_in_flight_every_waiting_call_fails_at_once(dies: bool):
    runner = (Deadly if dies else Ahead)(held=True)
    died = threading.Event()
    settings = EngineSettings(max_batch_tokens=40, hang_seconds=WAIT if dies else 0.2)
    engine = Engine(runner, settings, on_death=lambda _: died.set())
    requests = [submit(engine, sequences(10)) for _ in range(5)]  # all wait before a batch can hang
    engine.start()
    runner.await_launch(2)
    if dies:
        runner.let()
    for request in requests:
        with pytest.raises(InternalError):
            outputs(request)
    assert died.wait(WAIT)
    with pytest.raises(ModelFailed):
        submit(engine, sequences(1))
    runner.let_all()
    engine.close()


class Looking(Watchdog):
    """Finds no hang, and remembers the latest start of a batch that it was shown."""

    latest = 0.0
    interval = 0.002

    def __init__(self, hang_seconds: float) -> None:
        """Needs no limit."""

    def look(self, started: float | None, now: float) -> bool:
        Looking.latest = started or 0.0
        return False


def test_a_batch_launched_ahead_counts_as_hung_only_from_when_it_is_its_turn(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(engine_module, "Watchdog", Looking)
    runner = Ahead(held=True)
    with running(runner, max_batch_tokens=40) as engine:
        before = time.monotonic()
        request = submit(engine, sequences(4))
        runner.await_launch(2)
        launched = time.monotonic()
        assert runner.waited.acquire(timeout=WAIT)
        wait_for(lambda: before < Looking.latest <= launched)
        runner.let()
        assert runner.waited.acquire(timeout=WAIT)
        wait_for(lambda: launched < Looking.latest <= time.monotonic())
        runner.let_all()
        outputs(request)


def test_closing_runs_out_what_is_in_flight_and_launches_nothing_more():
    runner = Ahead(held=True)
    engine = Engine(runner, EngineSettings(max_batch_tokens=40))
    engine.start()
    works = [sequences(2) for _ in range(3)]
    requests = [submit(engine, work) for work in works]
    runner.await_launch(2)
    closing = threading.Thread(target=engine.close)
    closing.start()
    wait_for(lambda: not engine.alive)
    runner.let_all()
    closing.join(WAIT)
    flown = {sequence for batch in runner.batches for sequence in batch}
    assert len(runner.batches) == 2
    for request, work in zip(requests, works, strict=True):
        if flown.issuperset(work):
            assert outputs(request) == scored(work)
        else:
            with pytest.raises(ShuttingDown):
                outputs(request)
