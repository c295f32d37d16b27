"""One replica in simulated time: the service's gate, scheduler and meter around a device that is a formula.

Its two processes do in SimPy's time the steps that `rerank_grpc/reranker.py` does for a call and
`rerank_grpc/engine/engine.py` on the device's thread; every decision is made by the service's own code.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import simpy

from benchmarks.simulate.costs import Cost
from benchmarks.simulate.loads import Arrival
from rerank_grpc.callers import Caller
from rerank_grpc.config.settings import EngineSettings, ServerSettings
from rerank_grpc.engine.filling import Batch
from rerank_grpc.engine.future import Future
from rerank_grpc.engine.meter import Counts, Meter
from rerank_grpc.engine.scheduler import Scheduler
from rerank_grpc.errors import DeadlineExceeded, RerankError
from rerank_grpc.gate import Gate
from rerank_grpc.limits import LIMITS
from rerank_grpc.sequence import TOKEN_BYTES, Sequence

SMALLEST_TOKENS = 16  # of the smallest batch that a warm-up would have measured
ANSWERED = "OK"
OUTPUT = 0.5  # of each pair: nobody reads it

Steps: TypeAlias = Generator[simpy.Event, Any, None]  # a process of SimPy


@dataclass(frozen=True, slots=True)
class Setup:
    """One replica: its cost, the settings of its server, and its callers' deadline in seconds.

    `depth` is the number of batches that its runner has in flight: 1 on a CPU, 2 on a GPU.
    """

    cost: Cost
    engine: EngineSettings = field(default_factory=EngineSettings)
    max_calls: int = ServerSettings().max_calls
    deadline: float = 30.0
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call: OK or an error's reason, after so many seconds from its arrival."""

    arrival: Arrival
    replica: int
    code: str
    seconds: float


class Replica:
    """A server with one model."""

    def __init__(self, env: simpy.Environment, setup: Setup) -> None:
        self.setup = setup
        self.calls = 0  # that were sent here and have no answer yet
        self.busy_seconds = 0.0
        self._env = env
        cost = setup.cost
        budget = max(1, (setup.engine.max_batch_tokens or cost.budget) // setup.depth)
        self.scheduler = Scheduler(max_batch_tokens=budget, max_queue_tokens=setup.engine.max_queue_tokens)
        self.gate = Gate(setup.max_calls, LIMITS.characters_inside, clock=lambda: float(env.now))
        self.meter = Meter()
        self.meter.calibrate(
            Counts(1, SMALLEST_TOKENS, cost.of(SMALLEST_TOKENS)), Counts(1, budget, cost.of(budget))
        )
        self._batch_started: float | None = None
        self._wake: simpy.Event | None = None
        env.process(self._device())

    @property
    def queued_seconds(self) -> float:
        """The forecast of all that waits and runs."""
        return self._forecast(self.scheduler.queued_tokens) + self._forecast(self.scheduler.running_tokens)

    def answer(self, arrival: Arrival, index: int, outcomes: list[Outcome]) -> Steps:
        """Takes a call through the gate and the queue, as a process; appends its outcome."""
        came = self._env.now
        self.calls += 1
        try:
            yield from self._score(arrival, came + self.setup.deadline)
            code = ANSWERED
        except RerankError as error:
            code = type(error).__name__
        self.calls -= 1
        outcomes.append(Outcome(arrival, index, code, self._env.now - came))

    def _score(self, arrival: Arrival, deadline: float) -> Steps:
        """A call's path as the reranker has it; raises what that raises."""
        env, cost, caller = self._env, self.setup.cost, Caller(arrival.caller)
        with self.gate.enter(arrival.characters, caller.name) as permit:
            self.scheduler.check_queue(1, self._forecast, caller)
            if outside := cost.call_seconds + cost.document_seconds * len(arrival.tokens):
                yield env.timeout(outside)
            if env.now >= deadline:
                raise DeadlineExceeded("before it was queued")
            future, done = Future(sequences_of(arrival), deadline=deadline, caller=caller), env.event()
            future.on_done(permit.leave)
            future.on_done(lambda: _ignore(done.succeed()))
            self.scheduler.add(future, env.now, self._forecast)
            self._notify()
            try:
                if deadline < math.inf:
                    yield done | env.timeout(deadline - env.now)
                else:
                    yield done
                if not future.done:
                    future.fail(DeadlineExceeded("before the scores were there"))
            finally:
                self.scheduler.discard(future)
        if future.error is not None:
            raise future.error

    def _notify(self) -> None:
        if self._wake is not None:
            self._wake.succeed()
            self._wake = None

    def _device(self) -> Steps:
        """The device's thread, as a process: batches as soon as it is free, `depth` of them in flight."""
        env, flights = self._env, deque[tuple[Batch, float]]()
        free = turn = 0.0
        while True:
            while len(flights) < self.setup.depth and (batch := self._take_batch(bool(flights))):
                turn = turn if flights else env.now
                seconds = self.setup.cost.of(batch.tokens)
                free = max(free, env.now) + seconds
                self.busy_seconds += seconds
                flights.append((batch, free))
            if not flights:
                self._wake = env.event()
                yield self._wake
                continue
            batch, ends = flights.popleft()
            yield env.timeout(max(0.0, ends - env.now))
            self._land(batch, turn)
            turn = env.now

    def _take_batch(self, running: bool) -> Batch | None:
        """Takes the next batch, and fails the futures that are late."""
        for late in self.scheduler.expire(self._env.now):
            late.fail(DeadlineExceeded("while it was queued"))
        batch = self.scheduler.next_batch(self._env.now)
        if not running:
            self._batch_started = self._env.now if batch else None
        return batch

    def _land(self, batch: Batch, turn: float) -> None:
        """Counts a batch and hands its outputs to all that wait for them."""
        started = turn if self._batch_started is None else self._batch_started
        self._batch_started = now = self._env.now
        self.meter.add(batch.tokens, now - turn, started=started, ended=now)
        delivered: dict[Future, list[tuple[int, float]]] = {}
        for waiters in self.scheduler.finish(batch):
            for future, index in waiters:
                delivered.setdefault(future, []).append((index, OUTPUT))
        for future, outputs in delivered.items():
            future.deliver(outputs, now)

    def _forecast(self, tokens: float) -> float:
        until = self._env.now if self._batch_started is None else self._batch_started
        return self.meter.seconds(tokens, self.scheduler.max_batch_tokens, until)


def sequences_of(arrival: Arrival) -> list[Sequence]:
    """A sequence for each pair; no two of those that may meet in a queue are alike."""
    first = arrival.number * LIMITS.documents
    return [
        Sequence(
            ((first + pair) % (1 << 32)).to_bytes(TOKEN_BYTES, "little") + bytes(TOKEN_BYTES * (size - 1))
        )
        for pair, size in enumerate(arrival.tokens)
    ]


def _ignore(value: Any) -> None:
    """Makes nothing of a value, for callbacks that return none."""
