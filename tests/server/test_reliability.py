"""R3, R4, R6, R7, R8, R16, R17 and R18 on the running server, each with a proof that its test can fail.

Every measurement is a function of a running server. One test asserts its
bound; a second takes the protection away and asserts that the bound is broken.
Time is counted in batches of a held device wherever that says the same, so a
busy machine fails no test; milliseconds are the benchmark's.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import grpc
import pytest

from rerank_grpc.config.settings import EngineSettings, ServerSettings
from rerank_grpc.engine.engine import Engine
from rerank_grpc.engine.filling import Batch, Item
from rerank_grpc.engine.meter import Watchdog
from rerank_grpc.engine.scheduler import Scheduler
from rerank_grpc.errors import InternalError
from rerank_grpc.runner.runner import OutOfMemory, Runner
from rerank_grpc.sequence import Output, Sequence
from rerank_grpc.types import Call
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.stubs import status_code
from tests.support import (
    LONG,
    WAIT,
    CountingRunner,
    HeldRunner,
    WordTokenizer,
    loaded_in,
    request_of,
    score_of,
    serving,
    stub_of,
    tokens_of,
    wait_for,
)
from tests.texts import texts_request

TOKENS = 5  # of the pair ("q", "document 7") and its like
OK = grpc.StatusCode.OK


def code_of(call: "grpc.Future[pb.RerankResponse]") -> grpc.StatusCode:
    error = call.exception(WAIT)
    return OK if error is None else status_code(error)


@contextmanager
def calling(
    runner: Runner, *, max_calls: int = 96, **fields: Any
) -> Iterator[tuple[Engine, rerank_pb2_grpc.RerankServiceStub]]:
    """Serves a scripted device, and yields its engine and a stub that calls it."""
    settings = replace(ServerSettings(), max_calls=max_calls, engine=replace(EngineSettings(), **fields))
    with serving(settings, runner=runner) as server, stub_of(server.port) as stub:
        yield loaded_in(server).engine, stub


# R3


def refused_of(room: int, extra: int) -> Counter[grpc.StatusCode]:
    """Holds the device, sends `room + extra` calls at once, and counts their codes."""
    runner = HeldRunner()
    with calling(runner, max_queue_tokens=room * TOKENS) as (engine, stub):
        blocker = stub.Rerank.future(request_of("q", "the blocker"))
        runner.await_batch()
        calls = [stub.Rerank.future(request_of("q", f"document {n}")) for n in range(room + extra)]
        wait_for(lambda: sum(call.done() for call in calls) >= extra or engine.queued_tokens > room * TOKENS)
        wait_for(lambda: engine.queued_tokens >= room * TOKENS)
        runner.let_all()
        assert code_of(blocker) is OK
        for call in calls:
            if call.exception(WAIT):
                assert int(dict(call.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
        return Counter(map(code_of, calls))


def test_r3_with_room_for_n_calls_exactly_the_others_are_refused():
    assert refused_of(20, 13) == {OK: 20, grpc.StatusCode.RESOURCE_EXHAUSTED: 13}


def test_r3_fails_without_the_queues_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Scheduler, "check_queue", lambda *_: None)
    assert refused_of(20, 13) == {OK: 33}


# R4


def batches_until_answered() -> list[int]:
    """Runs 1,000 documents and one-document calls beside them; returns the batches each of these took."""
    runner, took = HeldRunner(), []
    with calling(runner, max_batch_tokens=TOKENS * 20) as (engine, stub):
        large = stub.Rerank.future(request_of("q", *[f"document {n}" for n in range(1_000)]))
        runner.await_batch()
        for n in range(10):
            took.append(_batches_of_small(stub, engine, runner, f"small {n}"))
            if took[-1] > 2:
                break
        runner.let_all()
        assert len(large.result(WAIT).results) == 1_000
        took.append(len(runner.batches))
    return took


def _batches_of_small(stub, engine: Engine, runner: HeldRunner, text: str) -> int:
    """Lets batch after batch run until a new call has its answer; returns how many."""
    wait_for(lambda: runner.begun > len(runner.batches))  # its batch has been taken off the queue
    queued, before = engine.queued_tokens, len(runner.batches)
    small = stub.Rerank.future(request_of("q", text))
    wait_for(lambda: engine.queued_tokens > queued)
    while not any(_holds(batch, text) for batch in runner.batches[before:]):
        _run_another(runner)
    assert code_of(small) is OK
    return len(runner.batches) - before


def _run_another(runner: HeldRunner) -> None:
    run = len(runner.batches)
    runner.let()
    wait_for(lambda: len(runner.batches) > run)


def _holds(batch: tuple[Sequence, ...], text: str) -> bool:
    return WordTokenizer().tokenize(texts_request("q", [text])).sequences[0] in batch


def test_r4_a_one_document_call_takes_at_most_two_batches_beside_a_thousand_documents():
    *small, total = batches_until_answered()
    assert max(small) <= 2  # the one in progress, and its own
    assert total <= 1.25 * 1_000 / 20  # and the large call hardly notices


def test_r4_fails_when_the_queue_is_first_come_first_served(monkeypatch: pytest.MonkeyPatch):
    def greedy(self: Scheduler, now: float) -> Batch | None:
        waiting = [queued for queued in self._queued.values() if queued.pending]
        items: list[Item] = []
        while waiting and sum(item.tokens for item in items) < self.max_batch_tokens and waiting[0].pending:
            items.append(waiting[0].pending.popleft())
        return self._start(items, now)

    monkeypatch.setattr(Scheduler, "next_batch", greedy)
    assert max(batches_until_answered()[:-1]) > 2


# R6


def late_call(timeout: float) -> tuple[float, int]:
    """Sends a call with little time behind a held device; returns its seconds and its forward passes."""
    runner = HeldRunner()
    with calling(runner) as (_, stub):
        blocker = stub.Rerank.future(request_of("q", "the blocker"))
        runner.await_batch()
        started = time.monotonic()
        late = stub.Rerank.future(request_of("q", "document 1"), timeout=timeout)
        assert code_of(late) is grpc.StatusCode.DEADLINE_EXCEEDED
        seconds = time.monotonic() - started
        runner.let_all()
        assert code_of(blocker) is OK
        assert code_of(stub.Rerank.future(request_of("q", "document 2"))) is OK
        return seconds, runner.sequences - 2


@pytest.mark.clock
def test_r6_a_deadline_behind_a_long_queue_ends_on_time_and_costs_no_pass():
    calls = [late_call(0.3) for _ in range(3)]
    assert min(seconds for seconds, _ in calls) < 0.4  # a busy machine may hold one up
    assert [passes for _, passes in calls] == [0] * 3


def test_r6_fails_when_late_work_is_not_dropped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Scheduler, "expire", lambda *_: [])
    monkeypatch.setattr(Engine, "discard", lambda *_: None)
    assert late_call(3)[1] == 1  # time enough to come to the queue


# R7 and R8


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes away what tells the engine that a caller has gone."""
    monkeypatch.setattr(Call, "cancel", lambda _: None)


def _seconds_until_cancelled(call: "grpc.Future[pb.RerankResponse]", engine: Engine, patience: int) -> float:
    before, started = engine.queued_tokens, time.monotonic()
    call.cancel()
    with contextlib.suppress(AssertionError):
        wait_for(lambda: engine.queued_tokens < before, seconds=patience)
    return time.monotonic() - started


def passes_of_cancelled(count: int) -> tuple[int, float]:
    """Cancels calls that are queued behind a held device.

    Returns how many were run all the same, and after how many seconds the room of most was free.
    """
    took: list[float] = []
    runner = HeldRunner()
    with calling(runner, max_calls=count * 2) as (engine, stub):
        blocker = stub.Rerank.future(request_of("q", "the blocker"))
        runner.await_batch()
        calls = [stub.Rerank.future(request_of("q", f"document {n}")) for n in range(count)]
        wait_for(lambda: engine.queued_tokens == count * TOKENS)
        for call in calls:
            patience = 1 if max(took, default=0) < 1 else 0
            took.append(_seconds_until_cancelled(call, engine, patience))
        runner.let_all()
        assert code_of(blocker) is OK
        assert code_of(stub.Rerank.future(request_of("q", "the last"))) is OK
        return runner.sequences - 2, median(took)


@pytest.mark.clock
def test_r7_calls_cancelled_while_queued_cost_no_pass_and_free_their_room():
    passes, seconds = passes_of_cancelled(100)
    assert passes == 0
    assert seconds <= 0.05


@pytest.mark.usefixtures("deaf")
def test_r7_fails_when_the_engine_is_not_told():
    assert passes_of_cancelled(100)[0] == 100


def batches_after_cancelling(method: str, patience: float = WAIT) -> int:
    """Cancels a call in the middle of 1,000 documents; returns how many further batches held its work.

    The engine has so many seconds to hear of it.
    """
    runner = HeldRunner()
    with calling(runner, max_batch_tokens=TOKENS * 10) as (engine, stub):
        message = request_of("q", *[f"document {n}" for n in range(1_000)]).SerializeToString()
        if method == "Rerank":
            call = stub.Rerank.future(pb.RerankRequest.FromString(message))
        else:
            call = stub.StreamRerank(pb.StreamRerankRequest.FromString(message))
        runner.let(3)
        for _ in range(4):
            runner.await_batch()
        call.cancel()
        with contextlib.suppress(AssertionError):
            wait_for(lambda: engine.queued_tokens == 0, patience)
        before = len(runner.batches)
        neighbour = stub.Rerank.future(request_of("q", "the neighbour"))
        runner.let_all()
        (result,) = neighbour.result(WAIT).results
        assert result.logit == pytest.approx(own_score("the neighbour"))
        wait_for(lambda: engine.queued_tokens == 0)
        return sum(len(batch) > 1 for batch in runner.batches[before:])


def own_score(text: str) -> float:
    return score_of(WordTokenizer().tokenize(texts_request("q", [text])).sequences[0])


@pytest.mark.parametrize("method", ["Rerank", "StreamRerank"])
def test_r8_a_call_cancelled_half_way_costs_at_most_one_further_batch(method: str):
    assert batches_after_cancelling(method) <= 1


@pytest.mark.usefixtures("deaf")
def test_r8_fails_when_the_engine_is_not_told():
    assert batches_after_cancelling("Rerank", patience=1) > 50


# R16


def poison(kind: str) -> Callable[[Sequence], Output | None]:
    culprit = WordTokenizer().tokenize(texts_request("q", ["document 3"])).sequences[0]

    def score(sequence: Sequence) -> float | None:
        if sequence != culprit:
            return score_of(sequence)
        if kind == "raises":
            raise RuntimeError("poison")
        return None

    return score


def codes_beside_poison(kind: str) -> Counter[grpc.StatusCode]:
    """Runs one poison pair in a batch with seven others; checks the scores of those that succeed."""
    runner = HeldRunner(poison(kind))
    with calling(runner) as (engine, stub):
        blocker = stub.Rerank.future(request_of("q", "the blocker"))
        runner.await_batch()
        calls = [stub.Rerank.future(request_of("q", f"document {n}")) for n in range(8)]
        wait_for(lambda: engine.queued_tokens == 8 * TOKENS)
        runner.let_all()
        assert code_of(blocker) is OK
        for n, call in enumerate(calls):
            if code_of(call) is OK:
                assert call.result().results[0].logit == pytest.approx(own_score(f"document {n}"))
            else:
                assert dict(call.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"
        return Counter(map(code_of, calls))


@pytest.mark.parametrize("kind", ["raises", "nan"])
def test_r16_a_poison_pair_fails_its_own_call_alone(kind: str):
    assert codes_beside_poison(kind) == {OK: 7, grpc.StatusCode.INTERNAL: 1}


def test_r16_fails_when_a_failed_batch_is_not_split(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        Engine, "_split", lambda self, batch, _: self._deliver(batch, [InternalError()] * len(batch.items), 0)
    )
    assert codes_beside_poison("raises") == {grpc.StatusCode.INTERNAL: 8}


# R17


class SmallMemory(CountingRunner):
    """Runs out of memory above 130 tokens."""

    def run(self, batch: tuple[Sequence, ...]) -> list[Output | None]:
        if tokens_of(batch) > 130:
            raise OutOfMemory
        return super().run(batch)


def codes_with_small_memory() -> list[grpc.StatusCode]:
    """Runs a call of many pairs, and one whose single pair is too large."""
    with calling(SmallMemory(), max_batch_tokens=4_096) as (_, stub):
        many = stub.Rerank.future(request_of("q", *[f"document {n}" for n in range(300)]))
        huge = stub.Rerank.future(request_of("q", "word " * 200))
        return [code_of(many), code_of(huge), code_of(stub.Rerank.future(request_of("q", "after")))]


def test_r17_out_of_memory_is_split_and_retried_and_one_pair_too_large_fails_alone():
    assert codes_with_small_memory() == [OK, grpc.StatusCode.RESOURCE_EXHAUSTED, OK]


def test_r17_fails_when_it_is_not_split(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        Engine, "_split", lambda self, batch, _: self._deliver(batch, [InternalError()] * len(batch.items), 0)
    )
    assert codes_with_small_memory()[0] is grpc.StatusCode.INTERNAL


# R18


class Deadly(HeldRunner):
    """Ends the device thread."""

    def run(self, batch: tuple[Sequence, ...]) -> list[Output | None]:
        super().run(batch)
        raise SystemExit


@pytest.fixture
def all_wait(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Has the watchdog of a device see nothing before the event is set."""
    ready, look = threading.Event(), Watchdog.look
    monkeypatch.setattr(Watchdog, "look", lambda *each: ready.is_set() and look(*each))
    return ready


def codes_after_death(
    runner: HeldRunner, all_wait: threading.Event, *, hang_seconds: float = 10 * LONG, timeout: float = LONG
) -> Counter[grpc.StatusCode]:
    """Lets the device die, or hang, once ten calls wait, each with so much time to fail."""
    with calling(runner, hang_seconds=hang_seconds, max_batch_tokens=TOKENS) as (engine, stub):
        calls = [stub.Rerank.future(request_of("q", f"document {n}"), timeout=timeout) for n in range(10)]
        wait_for(lambda: engine.queued_tokens == 9 * TOKENS)
        all_wait.set()
        started = time.monotonic()
        if isinstance(runner, Deadly):
            runner.let()
        codes = Counter(map(code_of, calls))
        assert time.monotonic() - started < 5 or grpc.StatusCode.DEADLINE_EXCEEDED in codes
        return codes


@pytest.mark.clock
def test_r18_when_the_device_thread_dies_every_waiting_call_fails_at_once(all_wait: threading.Event):
    assert codes_after_death(Deadly(), all_wait) == {grpc.StatusCode.INTERNAL: 10}


@pytest.mark.clock
def test_r18_when_the_device_hangs_every_waiting_call_fails_at_once(all_wait: threading.Event):
    codes = codes_after_death(HeldRunner(), all_wait, hang_seconds=0.2)
    assert codes == {grpc.StatusCode.INTERNAL: 10}


STOPPED = """
import os, signal, threading
from dataclasses import replace
from rerank_grpc.config.settings import EngineSettings, ServerSettings
from rerank_grpc.engine.meter import Watchdog
from tests.support import CountingRunner, serving

look, looks = Watchdog.look, threading.Semaphore(0)

def noting(*arguments):
    hangs = look(*arguments)
    looks.release()
    return hangs

class Stopping(CountingRunner):
    def run(self, batch):
        os.kill(os.getpid(), signal.SIGSTOP)
        while looks.acquire(blocking=False):  # those before
            pass
        for _ in range(2):
            looks.acquire()
        return super().run(batch)

Watchdog.look = noting
settings = replace(ServerSettings(), engine=EngineSettings(hang_seconds=2))
with serving(settings, runner=Stopping()) as server:
    print(server.port, flush=True)
    server.wait()
"""


def test_a_process_that_is_stopped_for_longer_than_a_hang_goes_on_where_it_was():
    """What `docker pause` and the migration of a virtual machine do; the clock goes on meanwhile."""
    command = [sys.executable, "-c", STOPPED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:

        def has_stopped() -> bool:
            ended, status = os.waitpid(server.pid, os.WUNTRACED | os.WNOHANG)
            assert not ended or os.WIFSTOPPED(status), "the process has ended"
            return ended != 0

        try:
            assert server.stdout
            with stub_of(int(server.stdout.readline())) as stub:
                call = stub.Rerank.future(request_of("q", "d"))
                wait_for(has_stopped)  # amid a batch
                threading.Event().wait(2.5)  # only real time makes the clock of another process go on
                server.send_signal(signal.SIGCONT)
                assert code_of(call) is OK
                assert stub.Health(pb.HealthRequest(), timeout=WAIT).state == pb.MODEL_STATE_READY
        finally:
            server.kill()


def test_r18_fails_when_nobody_is_told(all_wait: threading.Event, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Engine, "_die", lambda *_, **__: None)
    codes = codes_after_death(Deadly(), all_wait, timeout=5)
    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED: 10}
