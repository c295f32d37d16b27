"""The engine with its real threads; the device is a runner that the test holds, counts and breaks."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from rerank_grpc.config.settings import EngineSettings
from rerank_grpc.engine import engine as engine_module
from rerank_grpc.engine.engine import Engine, OnDeath
from rerank_grpc.engine.future import Future
from rerank_grpc.engine.meter import Counts, DeviceClock
from rerank_grpc.errors import (
    Cancelled,
    DeadlineExceeded,
    DeadlineUnreachable,
    InternalError,
    ModelFailed,
    PairTooLarge,
    QueueFull,
    ShuttingDown,
)
from rerank_grpc.runner.runner import DeviceLost, Runner
from rerank_grpc.sequence import Output, Sequence
from rerank_grpc.types import Call
from tests.support import WAIT, CountingRunner, HeldRunner, SmallMemory, score_of, submit, tokens_of, wait_for

NUMBERS = iter(range(10**9))


def sequences(count: int, tokens: int = 10) -> list[Sequence]:
    """Sequences equal to no others."""
    return [Sequence.of([next(NUMBERS)] + [0] * (tokens - 1)) for _ in range(count)]


@contextmanager
def running(runner: Runner, *, on_death: OnDeath = lambda hung: None, **settings: float) -> Iterator[Engine]:
    engine = Engine(runner, EngineSettings(**settings), on_death=on_death)  # type: ignore[arg-type]
    engine.start()
    try:
        yield engine
    finally:
        if isinstance(runner, HeldRunner):
            runner.let_all()
        engine.close()


def outputs(request: Future) -> list[Output | None]:
    request.wait()
    return request.outputs


def test_every_sequence_gets_its_own_output():
    with running(CountingRunner(), max_batch_tokens=64) as engine:
        work = sequences(100)
        assert outputs(submit(engine, work)) == [score_of(sequence) for sequence in work]


def test_a_request_without_sequences_is_answered_at_once():
    with running(CountingRunner()) as engine:
        assert outputs(submit(engine, [])) == []


def test_outputs_come_batch_by_batch():
    runner = HeldRunner()
    with running(runner, max_batch_tokens=20) as engine:
        request = submit(engine, sequences(6), stepwise=True)
        completed = request.completed()
        for expected in ([0, 1], [2, 3], [4, 5]):
            runner.await_batch()
            runner.let()
            assert next(completed) == expected


def test_no_batch_waits_for_a_fuller_one():
    runner = CountingRunner()
    with running(runner) as engine:
        outputs(submit(engine, sequences(1)))
        assert [len(batch) for batch in runner.batches] == [1]


def test_identical_sequences_of_concurrent_requests_cost_one_pass():
    runner = HeldRunner()
    with running(runner) as engine:
        blocker = submit(engine, sequences(1))
        runner.await_batch()
        same = sequences(5)
        requests = [submit(engine, same) for _ in range(10)]
        runner.let_all()
        for request in requests:
            assert outputs(request) == [score_of(sequence) for sequence in same]
        outputs(blocker)
        assert runner.sequences == 6
        assert sum(request.shared for request in requests) == 45


def test_r3_with_room_for_n_calls_exactly_the_others_are_refused():
    runner = HeldRunner()
    room, extra = 20, 13
    with running(runner, max_queue_tokens=room * 10) as engine:
        blocker = submit(engine, sequences(1))
        runner.await_batch()

        def call(work: list[Sequence]) -> Future | QueueFull:
            try:
                return submit(engine, work)
            except QueueFull as refusal:
                return refusal

        with ThreadPoolExecutor(room + extra) as callers:
            answers = list(callers.map(call, [sequences(1) for _ in range(room + extra)]))
        refused = [answer for answer in answers if isinstance(answer, QueueFull)]
        assert len(refused) == extra
        assert all(refusal.retry_after and refusal.retry_after > 0 for refusal in refused)
        runner.let_all()
        outputs(blocker)
        for answer in answers:
            if isinstance(answer, Future):
                assert len(outputs(answer)) == 1


def test_a_full_queue_refuses_a_call_before_it_is_tokenized():
    runner = HeldRunner()
    with running(runner, max_queue_tokens=20) as engine:
        blocker = submit(engine, sequences(1))
        runner.await_batch()
        engine.admit(Call())
        filling = submit(engine, sequences(2))
        with pytest.raises(QueueFull) as refusal:
            engine.admit(Call())
        assert refusal.value.retry_after == 1
        runner.let_all()
        outputs(blocker)
        outputs(filling)
        engine.admit(Call())
    with pytest.raises(ShuttingDown):
        engine.admit(Call())


@pytest.mark.clock
def test_r6_a_deadline_in_a_long_queue_ends_on_time_and_costs_no_pass():
    runner = HeldRunner()
    with running(runner) as engine:
        blocker = submit(engine, sequences(1))
        runner.await_batch()
        took = list[float]()
        for _ in range(3):
            started = time.monotonic()
            with engine.admit(Call(started + 0.3)) as admission, pytest.raises(DeadlineExceeded):
                outputs(admission.submit(sequences(3)))
            took.append(time.monotonic() - started)
        assert min(took) < 0.4  # a busy machine may hold one up
        runner.let_all()
        outputs(blocker)
        outputs(submit(engine, sequences(1)))
        assert runner.sequences == 2


def test_an_answered_request_does_not_expire(monkeypatch: pytest.MonkeyPatch):
    """Its caller may leave late: the device thread must not build an error for it with every batch."""
    built: list[str] = []
    monkeypatch.setattr(engine_module, "DeadlineExceeded", lambda message: built.append(message))
    with running(CountingRunner()) as engine:
        for _ in range(20):
            outputs(submit(engine, sequences(2), deadline=time.monotonic() + WAIT))
    assert built == []


def test_a_call_cancelled_before_it_submits_is_not_queued():
    runner, call = CountingRunner(), Call()
    with running(runner) as engine, engine.admit(call) as admission:
        call.cancel()
        with pytest.raises(Cancelled):
            admission.submit(sequences(3))
    assert runner.batches == []


@pytest.mark.parametrize("dies", [False, True], ids=["closed", "dead"])
def test_an_engine_that_has_ended_shares_its_device_no_more(dies: bool):
    clock = DeviceClock()
    runner = Deadly() if dies else HeldRunner()
    engine = Engine(runner, EngineSettings(), clock=clock)
    engine.start()
    request = submit(engine, sequences(1))
    runner.await_batch()
    assert clock.sharers("another") == 2
    closing = threading.Thread(target=engine.close)
    closing.start()
    runner.let()
    closing.join(WAIT)
    if dies:
        with pytest.raises((InternalError, ShuttingDown)):
            outputs(request)
    # A thread that dies has its call end a moment before it leaves the clock.
    wait_for(lambda: clock.sharers("another") == 1)


def of_rate(engine: Engine, tokens_per_second: float) -> None:
    """Has the engine believe in a device whose batches cost by their tokens alone."""
    engine.calibrate(Counts(1, 1, 1 / tokens_per_second), Counts(1, 100, 100 / tokens_per_second))


def test_what_waits_is_told_in_seconds_of_the_device():
    runner = HeldRunner()
    with running(runner) as engine:
        blocker = submit(engine, sequences(1))
        runner.await_batch()
        waiting = submit(engine, sequences(5, tokens=100))
        assert (engine.queued_tokens, engine.queued_seconds) == (500, 0)  # no rate is known yet
        of_rate(engine, 1_000)
        assert engine.queued_seconds == pytest.approx(0.5, rel=0.01)
        runner.let_all()
        outputs(blocker)
        outputs(waiting)
        assert engine.queued_seconds == 0


def test_r6_a_deadline_that_the_queue_cannot_meet_is_refused_at_once():
    runner = HeldRunner()
    with running(runner) as engine:
        of_rate(engine, 1)
        submit(engine, sequences(20, tokens=100))  # of 2,000 s
        with pytest.raises(DeadlineUnreachable) as refusal:
            submit(engine, sequences(3, tokens=100), deadline=time.monotonic() + WAIT)
        assert refusal.value.retry_after is not None
        assert refusal.value.retry_after >= 0.1


def test_r7_a_call_cancelled_while_queued_costs_no_pass_and_frees_its_room():
    runner = HeldRunner()
    with running(runner, max_queue_tokens=100) as engine:
        blocker = submit(engine, sequences(1))
        runner.await_batch()
        for _ in range(100):
            call = Call()
            with engine.admit(call) as admission:
                request = admission.submit(sequences(10))
                with pytest.raises(QueueFull):
                    submit(engine, sequences(1))
                call.cancel()
                with pytest.raises(Cancelled):
                    outputs(request)
            assert engine.queued_tokens == 0
        runner.let_all()
        outputs(blocker)
        outputs(submit(engine, sequences(1)))
        assert runner.sequences == 2


def test_r8_a_call_cancelled_half_way_costs_at_most_one_further_batch():
    runner = HeldRunner()
    with running(runner, max_batch_tokens=20) as engine:
        large = submit(engine, sequences(100))
        small_work = sequences(30)
        runner.await_batch()
        small = submit(engine, small_work)
        runner.let(3)
        for _ in range(3):
            runner.await_batch()
        large.fail(Cancelled("the caller left"))
        before = sum(sequence in large.sequences for batch in runner.batches for sequence in batch)
        runner.let_all()
        assert outputs(small) == [score_of(sequence) for sequence in small_work]
        after = sum(sequence in large.sequences for batch in runner.batches for sequence in batch)
        assert after - before <= 2  # one batch of 20 tokens


@pytest.mark.parametrize("poison", ["raises", "nan"])
def test_r16_a_poison_sequence_fails_its_request_alone(poison: str):
    works = [sequences(4) for _ in range(8)]
    culprit = works[3][2]

    def score(sequence: Sequence) -> float | None:
        if sequence == culprit:
            if poison == "raises":
                raise RuntimeError("poison")
            return None
        return score_of(sequence)

    runner = HeldRunner(score)
    with running(runner) as engine:
        blocker = submit(engine, sequences(1))
        runner.await_batch()
        requests = [submit(engine, work) for work in works]
        runner.let_all()
        outputs(blocker)
        for index, (request, work) in enumerate(zip(requests, works, strict=True)):
            if index == 3:
                with pytest.raises(InternalError) as failure:
                    outputs(request)
                assert failure.value.retry_after is None
            else:
                assert outputs(request) == [score_of(sequence) for sequence in work]
        assert engine.alive


def test_r16_who_asks_for_a_pair_while_its_failed_batch_is_split_is_not_failed_by_it():
    """The pair's first caller has left; the newcomer must not inherit the batch's failure."""
    first, second = sequences(1), sequences(1)
    runner = HeldRunner()
    failing = [True]

    def score(sequence: Sequence) -> float:
        if failing and failing.pop():
            raise RuntimeError("this batch only")
        return score_of(sequence)

    runner.score = score
    with running(runner) as engine:
        blocker_score, runner.score = runner.score, score_of
        blocker = submit(engine, sequences(1))
        runner.await_batch()
        leaving, staying = submit(engine, first), submit(engine, second)
        runner.let()
        outputs(blocker)
        runner.score = blocker_score
        runner.await_batch()
        leaving.fail(Cancelled("the caller left"))
        runner.let()  # the batch of both fails; then the one that is still wanted is run alone
        runner.await_batch()
        newcomer = submit(engine, first)
        runner.let_all()
        assert outputs(staying) == [score_of(second[0])]
        assert outputs(newcomer) == [score_of(first[0])]


def test_r17_out_of_memory_splits_the_batch_and_is_remembered():
    runner = SmallMemory(tokens=130)
    with running(runner, max_batch_tokens=1000) as engine:
        work = sequences(300)
        assert outputs(submit(engine, work)) == [score_of(sequence) for sequence in work]
        assert engine.max_batch_tokens <= 130
        failures = sum(tokens_of(batch) > 130 for batch in runner.batches)
        runner.batches.clear()
        outputs(submit(engine, sequences(300)))
        assert failures > 0
        assert not any(tokens_of(batch) > 130 for batch in runner.batches)


def test_r17_a_single_pair_too_large_fails_alone():
    runner = SmallMemory(tokens=130)
    with running(runner, max_batch_tokens=1000) as engine:
        small, large = sequences(5), sequences(1, tokens=500)
        requests = submit(engine, small), submit(engine, large)
        assert outputs(requests[0]) == [score_of(sequence) for sequence in small]
        with pytest.raises(PairTooLarge) as failure:
            outputs(requests[1])
        assert failure.value.metadata == {"tokens": "500"}
        assert engine.max_batch_tokens > 1  # one huge pair must not cripple the batches


class Deadly(HeldRunner):
    """Ends its thread as nothing that is caught per batch does."""

    def run(self, batch: tuple[Sequence, ...]) -> list[Output | None]:
        super().run(batch)
        raise SystemExit


@pytest.mark.parametrize("runner", [Deadly(), HeldRunner()], ids=["dies", "hangs"])
def test_r18_when_the_device_thread_dies_or_hangs_every_waiting_call_fails_at_once(runner: HeldRunner):
    died = threading.Event()
    hang = WAIT if isinstance(runner, Deadly) else 0.2
    hung = []

    def on_death(hangs: bool) -> None:
        hung.append(hangs)
        died.set()

    engine = Engine(runner, EngineSettings(max_batch_tokens=20, hang_seconds=hang), on_death=on_death)
    requests = [submit(engine, sequences(10)) for _ in range(5)]  # all wait before a batch can hang
    engine.start()
    if isinstance(runner, Deadly):
        runner.let()
    for request in requests:
        with pytest.raises(InternalError):
            outputs(request)
    assert died.wait(WAIT)
    assert hung == [not isinstance(runner, Deadly)]
    assert not engine.alive
    with pytest.raises(ModelFailed):
        submit(engine, sequences(1))
    runner.let_all()
    engine.close()


def test_r18_a_device_that_is_lost_ends_the_engine_instead_of_failing_call_after_call():
    class Lost(CountingRunner):
        def run(self, batch: tuple[Sequence, ...]) -> list[Output | None]:
            raise DeviceLost

    told: list[bool] = []
    with running(Lost(), on_death=told.append) as engine:
        request = submit(engine, sequences(3))
        with pytest.raises(InternalError):
            outputs(request)
        assert not engine.alive
        wait_for(lambda: told == [True])
        with pytest.raises(ModelFailed):
            submit(engine, sequences(1))


def test_closing_runs_out_the_batch_and_settles_everybody():
    runner = HeldRunner()
    engine = Engine(runner, EngineSettings(max_batch_tokens=20))
    engine.start()
    requests = [submit(engine, sequences(2))]
    runner.await_batch()
    requests += [submit(engine, sequences(2)) for _ in range(2)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    wait_for(lambda: not engine.alive)
    runner.let_all()
    closing.join(WAIT)
    assert outputs(requests[0])
    for request in requests[1:]:
        with pytest.raises(ShuttingDown):
            outputs(request)
    with pytest.raises(ShuttingDown):
        submit(engine, sequences(1))


def test_closing_a_dead_engine_does_not_wait_for_its_companion():
    runner, over = Deadly(), threading.Event()
    engine = Engine(runner, EngineSettings(hang_seconds=WAIT))
    engine.start()
    ended = threading.Event()

    def work() -> None:
        over.wait(WAIT)
        ended.set()

    engine.accompany(work)
    request = submit(engine, sequences(1))
    runner.let()
    with pytest.raises(InternalError):
        outputs(request)
    engine.close()
    assert not ended.is_set()
    over.set()
    assert ended.wait(WAIT)


def test_an_engine_does_without_a_companion_where_the_system_has_no_thread_left(
    monkeypatch: pytest.MonkeyPatch,
):
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with running(CountingRunner()) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            engine.accompany(lambda: None)
        assert outputs(submit(engine, sequences(1)))


def test_an_admission_submits_once():
    with running(CountingRunner()) as engine, engine.admit(Call()) as admission:
        outputs(admission.submit(sequences(1)))
        with pytest.raises(AssertionError, match="once"):
            admission.submit(sequences(1))
    assert engine.queued_tokens == 0


def test_the_age_of_the_queue_is_that_of_the_call_that_has_waited_longest():
    runner = HeldRunner()
    with running(runner, max_batch_tokens=10) as engine:
        assert engine.oldest_seconds == 0
        inside = submit(engine, sequences(1))
        runner.await_batch()
        assert engine.oldest_seconds == 0, "it is on the device"
        began = time.monotonic()
        waiting = submit(engine, sequences(1))
        wait_for(lambda: engine.oldest_seconds > 0.01)
        assert engine.oldest_seconds <= time.monotonic() - began
        runner.let_all()
        assert outputs(inside)
        assert outputs(waiting)
        assert engine.oldest_seconds == 0
