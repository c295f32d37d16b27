"""Runs the queue of one model on one device: admit a call, submit its sequences, wait for its future."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Sequence_
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import TypeAlias

from rerank_grpc.config.settings import EngineSettings
from rerank_grpc.engine.filling import Batch
from rerank_grpc.engine.forecast import Forecast
from rerank_grpc.engine.future import Future
from rerank_grpc.engine.meter import Counts, DeviceClock, Meter, Watchdog
from rerank_grpc.engine.scheduler import Scheduler
from rerank_grpc.errors import (
    DeadlineExceeded,
    InternalError,
    ModelFailed,
    PairTooLarge,
    RerankError,
    ShuttingDown,
    describe,
)
from rerank_grpc.runner.runner import DeviceLost, Landing, OutOfMemory, Runner
from rerank_grpc.sequence import Output, Sequence
from rerank_grpc.telemetry.records import BatchRecord, BatchSink
from rerank_grpc.types import Call, Priority

log = logging.getLogger(__name__)

Flight: TypeAlias = tuple[Batch, Landing]  # a batch that was launched
OnDeath: TypeAlias = Callable[[bool], None]  # its argument: whether the device hangs, which a restart mends

UNMEASURED_BATCH_TOKENS = 4_096  # until the warm-up has measured the best batch
TOO_LARGE = "one pair of %d tokens exceeds the device's memory: shorten it or use max_tokens_per_document"


@dataclass(slots=True)
class Admission:
    """One call inside an engine; leaving the `with` statement frees all that the call holds there."""

    _engine: Engine
    _call: Call
    _priority: Priority
    _future: Future | None = None

    def submit(self, sequences: Sequence_[Sequence], *, stepwise: bool = False) -> Future:
        """Queues the call's sequences, once; also raises DeadlineUnreachable, DeadlineExceeded, Cancelled."""
        assert self._future is None, "an admission submits once"
        if sequences:
            self._call.check()
        call = self._call
        future = Future(
            sequences,
            deadline=call.deadline,
            priority=self._priority,
            caller=call.caller,
            stepwise=stepwise,
        )
        self._engine.enqueue(future)
        self._future = future
        self._call.on_cancel(future.cancel)
        return future

    def __enter__(self) -> Admission:
        return self

    def __exit__(self, *error: object) -> None:
        if self._future is not None:
            self._engine.discard(self._future)


class Engine:
    """Owns the device thread of one model, and a thread that watches it.

    If the device thread dies or hangs, every waiting future fails at once, and the thread that found it calls
    `on_death` once; the engine does not come back by itself. Engines on one device share its `clock`.
    """

    def __init__(
        self,
        runner: Runner,
        settings: EngineSettings,
        *,
        name: str = "model",
        on_death: OnDeath = lambda hung: None,
        clock: DeviceClock | None = None,
    ) -> None:
        self.settings = settings
        self.calls = 0  # calls that brought sequences
        self.on_batch: BatchSink | None = None  # is told of each batch once it is done
        self.not_finite = 0  # the number of outputs that were no finite numbers; each failed its calls
        self._runner = runner
        self.name = name
        self._on_death = on_death
        # At most `depth` batches are on the device, and together they hold one token budget: a new call
        # waits no longer for batches launched ahead than for a single full one.
        self._flights = deque[Flight]()
        budget = max(1, (settings.max_batch_tokens or UNMEASURED_BATCH_TOKENS) // runner.depth)
        self._scheduler = Scheduler(max_batch_tokens=budget, max_queue_tokens=settings.max_queue_tokens)
        self._meter = Meter()
        self._clock = clock or DeviceClock()
        # The start of the device's work for the batch that lands next, by its clock and by the watcher's.
        self._turn = 0.0
        self._batch_started: float | None = None
        self._death: RerankError | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        # A Condition would make the waking device thread wait for the lock that the submitting thread
        # still holds. A busy device thread is never notified.
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self._idle = False
        self._threads = [
            threading.Thread(target=self._run, name=f"device-{name}", daemon=True),
            threading.Thread(target=self._watch, name=f"watch-{name}", daemon=True),
        ]
        self._companion: threading.Thread | None = None

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def accompany(self, work: Callable[[], None]) -> None:
        """Runs work on a thread of its own, if one starts; the work must end when the engine ends."""
        companion = threading.Thread(target=work, name=f"accompany-{self.name}", daemon=True)
        with suppress(RuntimeError):  # the system has no thread left
            companion.start()
            self._companion = companion

    def wait_for_end(self, seconds: float) -> bool:
        """Waits so long at most; whether the engine has ended."""
        return self._ended.wait(seconds)

    @property
    def idle_seconds(self) -> float:
        """The seconds since any engine of the device had a batch; 0 while one has, or a call waits here."""
        return self._clock.idle_seconds(monotonic()) if self._idle else 0.0

    @property
    def shared_seconds(self) -> float:
        """The seconds so far in which several engines had a batch on the device."""
        return self._clock.shared_seconds

    @property
    def alive(self) -> bool:
        """Whether it can score: not closed, and its device thread neither died nor hangs."""
        return self._death is None and not self._ended.is_set()

    @property
    def queued_tokens(self) -> int:
        """The tokens that wait for the device."""
        return self._scheduler.queued_tokens

    @property
    def queued_seconds(self) -> float:
        """The device's seconds for the tokens that wait; 0 where nothing waits or no rate is known."""
        rate = self.tokens_per_second
        return self.queued_tokens / rate if rate else 0.0

    @property
    def oldest_seconds(self) -> float:
        """The age of the oldest call of which something waits for the device; 0 without one."""
        with self._lock:
            since = self._scheduler.oldest()
        return 0.0 if since is None else max(0.0, monotonic() - since)

    @property
    def max_batch_tokens(self) -> int:
        """The most tokens on the device at once; lower after it ran out of memory."""
        return self._scheduler.max_batch_tokens * self._runner.depth

    @max_batch_tokens.setter
    def max_batch_tokens(self, tokens: int) -> None:
        with self._lock:
            self._scheduler.max_batch_tokens = max(1, tokens // self._runner.depth)

    @property
    def tokens_per_second(self) -> float:
        """The rate of full batches with the device for themselves; before the warm-up, of all batches."""
        if not self._meter.calibrated:
            return self._meter.counts.tokens_per_second
        budget = self._scheduler.max_batch_tokens
        return budget / self._meter.seconds(budget, budget, self._batch_started or monotonic())

    @property
    def counts(self) -> Counts:
        """The device's work so far."""
        return self._meter.counts

    def calibrate(self, smallest: Counts, full: Counts) -> None:
        """Takes the costs of batches that the warm-up measured."""
        with self._lock:
            self._meter.calibrate(smallest, full)

    def admit(self, call: Call, priority: Priority = Priority.INTERACTIVE) -> Admission:
        """Lets a call in before it is tokenized; raises QueueFull, ShuttingDown or ModelFailed."""
        with self._lock:
            self._check_alive()
            self._scheduler.check_queue(1, self._forecast(), call.caller)
        return Admission(self, call, priority)

    def enqueue(self, future: Future) -> None:
        """Queues an admitted call's sequences, and wakes the device thread."""
        with self._lock:
            self._check_alive()
            self._scheduler.add(future, monotonic(), self._forecast())
            self.calls += 1
            idle, self._idle = self._idle, False
        if idle:
            self._wakeups.put(None)

    def discard(self, future: Future) -> None:
        """Frees the queue of an admitted call that leaves: nothing more is run for it."""
        with self._lock:
            self._scheduler.discard(future)

    def close(self) -> None:
        """Ends the threads after the batch in progress; waiting futures fail with ShuttingDown."""
        with self._lock:
            self._end()
        for thread in self._threads:
            if thread.is_alive() and self._death is None:
                thread.join(timeout=self.settings.hang_seconds)
        self._fail_all(ShuttingDown("the server is stopping", retry_after=1.0))
        if self._companion is not None and self._death is None:
            self._companion.join(timeout=self.settings.hang_seconds)

    def _check_alive(self) -> None:
        if self._death is not None:
            raise ModelFailed(
                "the model's device failed: the server must be restarted", metadata={"model": self.name}
            )
        if self._ended.is_set():
            raise ShuttingDown("the server is stopping", retry_after=1.0)

    def _forecast(self) -> Forecast | None:
        return self._wall_seconds if self._meter.calibrated else None

    def _wall_seconds(self, tokens: float) -> float:
        """Predicts the seconds of tokens beside the engines that share the device now."""
        budget, idle_until = self._scheduler.max_batch_tokens, self._batch_started or monotonic()
        return self._meter.seconds(tokens, budget, idle_until) * self._clock.sharers(self)

    def _run(self) -> None:  # the device thread
        try:
            while self._fill_up():
                self._land(self._flights.popleft())
        except BaseException as error:  # no future may be left waiting, whatever ends this thread
            log.critical("the device thread of %s died: %s", self.name, describe(error))
            self._die(hung=isinstance(error, DeviceLost))
        finally:
            self._clock.time(monotonic(), leave=self)

    def _fill_up(self) -> bool:
        """Launches batches, or waits for work; false when the engine has ended and all batches landed."""
        while len(self._flights) < self._runner.depth and not self._ended.is_set():
            if batch := self._take_batch():
                self._flights.append(self._launch(batch))
            elif self._flights:
                break
            else:
                self._wakeups.get()
        return bool(self._flights)

    def _take_batch(self) -> Batch | None:
        """Takes the next batch, and fails expired futures; a sleeping thread keeps no reference to them."""
        now = monotonic()
        with self._lock:
            expired = self._scheduler.expire(now)
            batch = self._scheduler.next_batch(now)
            self._idle = not (batch or self._flights)
            if self._idle:
                self._batch_started = None
                self._clock.time(now, leave=self)
            elif not self._flights:
                self._batch_started = now
                self._turn = self._clock.time(now, enter=self)
        for future in expired:
            future.fail(DeadlineExceeded("the deadline passed while the call was queued"))
        return batch

    def _launch(self, batch: Batch) -> Flight:
        """Starts a batch on the device; a failure is told when the flight lands."""
        try:
            return batch, self._runner.launch(tuple([item.sequence for item in batch.items]))
        except Exception as error:
            return batch, partial(_raise, error)

    def _land(self, flight: Flight) -> None:
        """Waits for a batch, counts it, and delivers its outputs; the turn of the next one begins."""
        batch, land = flight
        began, started = self._turn, self._batch_started
        try:
            outputs = land()
        except DeviceLost:
            raise
        except Exception as error:
            self._batch_started = now = monotonic()
            self._turn = self._clock.time(now)
            self._split(batch, error)
            return
        self._batch_started = now = monotonic()
        self._turn = self._clock.time(now)
        self._meter.add(batch.tokens, self._turn - began, started=started or now, ended=now)
        told = self.on_batch and self._tell(self.on_batch, batch, started or now, now, self._turn - began)
        self._deliver(batch, outputs, now, told)

    def _tell(self, sink: BatchSink, batch: Batch, started: float, now: float, busy_seconds: float) -> object:
        """Tells the batch sink of a batch; returns what it returns."""
        budget, sequences = self._scheduler.max_batch_tokens, len(batch.items)
        try:
            return sink(BatchRecord(self.name, batch.tokens, budget, sequences, started, now, busy_seconds))
        except Exception as error:
            log.error("a batch of %s could not be told: %s", self.name, describe(error))
            return None

    def _deliver(
        self, batch: Batch, results: Iterable[Output | RerankError | None], now: float, told: object = None
    ) -> None:
        """Hands the outputs of items to all that wait for them, and the errors to them alone."""
        delivered: dict[Future, list[tuple[int, Output]]] = {}
        with self._lock:
            finished = self._scheduler.finish(batch)
        for waiters, result in zip(finished, results, strict=True):
            if result is None:
                self.not_finite += 1
                result = InternalError()
            for future, index in waiters:
                if isinstance(result, RerankError):
                    future.fail(result)
                else:
                    delivered.setdefault(future, []).append((index, result))
        for future, pairs in delivered.items():
            if told is not None:
                future.batches.append(told)
            future.deliver(pairs, now)

    def _split(self, batch: Batch, error: Exception) -> None:
        """Runs a failed batch in halves, until the culprit stands alone and fails its futures."""
        items, tokens = batch
        out_of_memory = isinstance(error, OutOfMemory)
        if len(items) == 1:
            log.error("a sequence of %d tokens failed alone: %s", tokens, describe(error))
            failure = PairTooLarge(TOO_LARGE % tokens, metadata={"tokens": str(tokens)})
            self._deliver(batch, [failure if out_of_memory else InternalError()], monotonic())
            return
        with self._lock:
            halves = self._scheduler.halves(batch)
            most = max(1, min(self._scheduler.max_batch_tokens, tokens // 2))
            if out_of_memory:
                self._scheduler.max_batch_tokens = most
        if out_of_memory:
            log.warning("out of memory at %d tokens a batch: now at most %d", tokens, most)
        else:
            log.warning("a batch of %d failed, trying halves: %s", len(items), type(error).__name__)
        for half in halves:
            self._land(self._launch(half))

    def _watch(self) -> None:  # a thread that looks from time to time, so no batch has to wake it
        limit = self.settings.hang_seconds
        watchdog = Watchdog(limit)
        while not self._ended.wait(watchdog.interval):
            if watchdog.look(self._batch_started, monotonic()):
                log.critical("the device of %s has not answered for %g s", self.name, limit)
                self._die(hung=True)

    def _end(self) -> None:
        self._ended.set()
        self._wakeups.put(None)

    def _die(self, *, hung: bool) -> None:
        with self._lock:
            if self._death is not None:
                return
            self._death = InternalError()
            self._end()
        self._clock.time(monotonic(), leave=self)
        self._fail_all(self._death)
        self._on_death(hung)

    def _fail_all(self, error: RerankError) -> None:
        with self._lock:
            futures = self._scheduler.clear()
        for future in futures:  # without the lock: a callback of the future may ask this engine something
            future.fail(error)


def _raise(error: Exception) -> list[Output | None]:
    raise error
