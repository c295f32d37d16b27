"""Which calls are let in by what is believed of the device; here it is a formula on a clock of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rerank_grpc import types
from rerank_grpc.config.settings import EngineSettings
from rerank_grpc.engine import engine as engine_module
from rerank_grpc.engine.engine import Engine
from rerank_grpc.engine.meter import DeviceClock
from rerank_grpc.errors import DeadlineUnreachable
from rerank_grpc.registry import warmup
from rerank_grpc.sequence import Output, Sequence
from tests.engine.test_engine import outputs, sequences
from tests.support import CARD, LONG, WAIT, CountingRunner, WordTokenizer, submit, tokens_of

FIXED, PER_TOKEN = 0.010, 0.00025


class Time:
    """Stands still but for what devices add."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Time:
    moment = Time()
    for module in (engine_module, types):
        monkeypatch.setattr(module, "monotonic", moment)
    return moment


class Device(CountingRunner):
    """Takes 10 ms a batch and 4,000 tokens a second; `frozen` seconds more for the next one.

    A batch waits while the test holds `free` back, and `entered` counts it in.
    """

    def __init__(self, now: Time) -> None:
        super().__init__()
        self.now, self.frozen = now, 0.0
        self.free, self.entered = threading.Event(), threading.Semaphore(0)
        self.free.set()

    def run(self, batch: tuple[Sequence, ...]) -> list[Output | None]:
        self.entered.release()
        assert self.free.wait(LONG), "the test never let the batch run"
        self.now.now += FIXED + PER_TOKEN * tokens_of(batch) + self.frozen
        self.frozen = 0.0
        return super().run(batch)

    def hold(self) -> None:
        """Holds the next batch back."""
        self.free.clear()
        self.entered = threading.Semaphore(0)

    def await_batch(self) -> None:
        assert self.entered.acquire(timeout=WAIT), "no batch came"


@contextmanager
def warm(device: Device, clock: DeviceClock | None = None) -> Iterator[Engine]:
    engine = Engine(device, EngineSettings(max_batch_tokens=2_048, hang_seconds=1e9), clock=clock)
    engine.start()
    try:
        warmup.warm_up(engine, WordTokenizer(), CARD)
        yield engine
    finally:
        device.free.set()
        engine.close()


TRUE_RATE = 2_048 / (FIXED + 2_048 * PER_TOKEN)


def one_document_calls(engine: Engine, count: int) -> None:
    for _ in range(count):
        outputs(submit(engine, sequences(1)))


def test_a_freeze_amid_one_document_calls_locks_nobody_out(now: Time):
    device = Device(now)
    with warm(device) as engine:
        one_document_calls(engine, 100)
        device.frozen = 8.0
        one_document_calls(engine, 3)
        assert engine.tokens_per_second == pytest.approx(TRUE_RATE, rel=0.5)
        for _ in range(119):
            outputs(submit(engine, sequences(10, tokens=220), deadline=now() + 8))


def test_a_freeze_locks_nobody_out_of_an_engine_that_has_work(now: Time):
    device = Device(now)
    with warm(device) as engine:
        one_document_calls(engine, 100)
        device.frozen = 8.0
        one_document_calls(engine, 1)
        device.hold()
        blocker = submit(engine, sequences(1))
        device.await_batch()
        waiting = [submit(engine, sequences(10, tokens=220), deadline=now() + 8) for _ in range(6)]  # 3.5 s
        device.free.set()
        for request in (blocker, *waiting):
            outputs(request)


def test_a_thousand_one_document_calls_do_not_poison_the_estimate_for_large_ones(now: Time):
    device = Device(now)
    with warm(device) as engine:
        one_document_calls(engine, 1_000)
        assert 1 / 1.5 < engine.tokens_per_second / TRUE_RATE < 1.5
        device.hold()
        blocker = submit(engine, sequences(1))
        device.await_batch()
        large = sequences(60, tokens=270)
        started = now()
        request = submit(engine, large, deadline=started + 2 * 60 * 270 / TRUE_RATE)
        device.free.set()
        outputs(blocker)
        outputs(request)


def test_an_idle_engine_lets_in_what_it_believes_to_be_impossible(now: Time):
    device = Device(now)
    with warm(device) as engine:
        assert submit(engine, sequences(100, tokens=200), deadline=now() + 1e-6)


def test_a_refusal_names_a_time_after_which_the_call_is_let_in(now: Time):
    device = Device(now)
    with warm(device) as engine:
        device.hold()
        blocker = submit(engine, sequences(100, tokens=200))
        device.await_batch()
        with pytest.raises(DeadlineUnreachable) as refusal:
            submit(engine, sequences(50, tokens=200), deadline=now() + 1)
        assert refusal.value.retry_after is not None
        started = now()
        device.free.set()
        outputs(blocker)
        assert refusal.value.retry_after == pytest.approx(now() - started, rel=0.5)
        assert submit(engine, sequences(50, tokens=200), deadline=now() + 1)


def test_another_models_load_is_not_taken_for_a_slower_device(now: Time):
    clock, device, other = DeviceClock(), Device(now), Device(now)
    with warm(device, clock) as engine, warm(other, clock) as neighbour:
        rate, before = engine.tokens_per_second, engine.counts
        other.hold()
        beside = submit(neighbour, sequences(1))
        other.await_batch()
        device.frozen = FIXED + PER_TOKEN * 1_000  # each has half of the device
        device.hold()
        request = submit(engine, sequences(100))
        device.await_batch()
        with pytest.raises(DeadlineUnreachable) as refusal:  # behind as much again
            submit(engine, sequences(100), deadline=now() + 1e-3)
        needed = float(refusal.value.metadata["needed_seconds"])
        assert needed == pytest.approx(2 * 2 * (FIXED + PER_TOKEN * 1_000), rel=0.01)
        device.free.set()
        outputs(request)
        assert engine.counts.since(before).busy_seconds == pytest.approx(FIXED + PER_TOKEN * 1_000)
        assert engine.tokens_per_second == pytest.approx(rate)
        other.free.set()
        outputs(beside)
