"""Runs the queue of one model on one device: submit() → Future.

One thread, the device thread, takes a batch whenever the device is free and
delivers its outputs; with a runner that overlaps, it launches the next batch
before it waits for the last. A second one watches it. If the device thread dies or
hangs, every waiting request fails at once and `alive` turns false; the engine
does not come back by itself. Engines on one device share its DeviceClock.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Sequence_
from queue import SimpleQueue
from time import monotonic
from typing import TypeAlias

from rerank_grpc.config.settings import EngineSettings
from rerank_grpc.engine.clock import DeviceClock
from rerank_grpc.engine.flight import Flight, Launcher
from rerank_grpc.engine.future import Future
from rerank_grpc.engine.meter import Meter, Usage
from rerank_grpc.engine.scheduler import Forecast, Item, Scheduler, tokens_of
from rerank_grpc.engine.watchdog import Watchdog
from rerank_grpc.errors import (
    DeadlineExceeded,
    InternalError,
    ModelFailed,
    PairTooLarge,
    RerankError,
    ShuttingDown,
    describe,
)
from rerank_grpc.runner.runner import DeviceLost, OutOfMemory, Runner
from rerank_grpc.sequence import Output, Sequence
from rerank_grpc.types import Priority

log = logging.getLogger(__name__)

# Told whether the device hangs, so that only a new process helps.
OnDeath: TypeAlias = Callable[[bool], None]

UNMEASURED_BATCH_TOKENS = 4_096  # until the warm-up has measured what the device likes

Scored: TypeAlias = tuple[Item, Output | RerankError]


class Engine:
    """Owns the device thread of one model.

    `on_death` is called once, on the thread that found out, when the device
    thread died or hung.
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
        self._launcher = Launcher(runner)
        self._name = name
        self._on_death = on_death
        # So many batches are on the device at once, and together no more than one budget: who comes
        # now waits no longer for what was launched ahead than for a single batch.
        self._flights = deque[Flight]()
        self._scheduler = Scheduler(
            max_batch_tokens=max(
                1, (settings.max_batch_tokens or UNMEASURED_BATCH_TOKENS) // self._launcher.depth
            ),
            max_queue_tokens=settings.max_queue_tokens,
        )
        self._meter = Meter()
        self._clock = clock or DeviceClock()
        # Since when the device works for the batch that lands next: in its own time, and in the watcher's.
        self._turn = 0.0
        self._batch_started: float | None = None
        self._closing = False
        self._death: RerankError | None = None
        self._lock = threading.Lock()
        # The device thread sleeps on a queue in C, not on a condition: it wakes without the lock
        # that the caller who wakes it still holds, and nobody is woken while it is at work.
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self._idle = False
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{name}", daemon=True)
        self._threads = [
            threading.Thread(target=self._run, name=f"device-{name}", daemon=True),
            self._watcher,
        ]

    def start(self) -> None:
        """Starts the device thread and the one that watches it."""
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether it can score: not closed, and its device thread neither died nor hangs."""
        return self._death is None and not self._closing

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for the device."""
        return self._scheduler.queued_tokens

    @property
    def max_batch_tokens(self) -> int:
        """How many tokens are on the device at once; less after it ran out of memory."""
        return self._scheduler.max_batch_tokens * self._launcher.depth

    @max_batch_tokens.setter
    def max_batch_tokens(self, tokens: int) -> None:
        with self._lock:
            self._scheduler.max_batch_tokens = max(1, tokens // self._launcher.depth)

    @property
    def tokens_per_second(self) -> float:
        """The rate of full batches with the device for themselves; before the warm-up, of all batches."""
        if not self._meter.calibrated:
            return self._meter.usage.tokens_per_second
        room = self._scheduler.max_batch_tokens
        return room / self._meter.seconds(room, room, self._idle_until())

    @property
    def usage(self) -> Usage:
        """What the device has done so far, for metrics; a value of its own, safe to keep."""
        return self._meter.usage

    def calibrate(self, smallest: Usage, full: Usage) -> None:
        """Takes what the warm-up measured as what batches cost."""
        with self._lock:
            self._meter.calibrate(smallest, full)

    def check_room(self) -> None:
        """Raises what `submit` would raise for any call at all: cheaper before tokenizing than after."""
        with self._lock:
            self._check_alive()
            self._scheduler.check_room(1, self._forecast())

    def submit(
        self,
        sequences: Sequence_[Sequence],
        *,
        deadline: float = math.inf,
        priority: Priority = Priority.INTERACTIVE,
        stepwise: bool = False,
    ) -> Future:
        """Lets a request in; the caller waits on it, `stepwise` in `completed`, then releases it.

        Raises QueueFull, DeadlineUnreachable, DeadlineExceeded, ShuttingDown, or
        ModelFailed when the device thread is gone.
        """
        request = Future(sequences, deadline=deadline, priority=priority, stepwise=stepwise)
        now = monotonic()
        if sequences and request.late(now):
            raise DeadlineExceeded("the deadline passed before the call reached the queue")
        with self._lock:
            self._check_alive()
            self._scheduler.add(request, now, self._forecast())
            idle, self._idle = self._idle, False
        if idle:
            self._wakeups.put(None)
        return request

    def release(self, request: Future) -> None:
        """Frees what a request still holds: nothing more is run for it."""
        with self._lock:
            self._scheduler.discard(request)

    def close(self) -> None:
        """Ends the threads after the batch in progress; whoever still waits gets ShuttingDown."""
        with self._lock:
            self._closing = True
        self._end()
        for thread in self._threads:
            if thread.is_alive() and self._death is None:
                thread.join(timeout=self.settings.hang_seconds)
        self._fail_all(ShuttingDown("the server is stopping", retry_after=1.0))

    def _check_alive(self) -> None:
        if self._death is not None:
            raise ModelFailed(
                "the model's device failed: the server must be restarted", metadata={"model": self._name}
            )
        if self._closing:
            raise ShuttingDown("the server is stopping", retry_after=1.0)

    def _forecast(self) -> Forecast | None:
        """Tells what tokens will take; None until the warm-up has measured."""
        return self._wall_seconds if self._meter.calibrated else None

    def _wall_seconds(self, tokens: float) -> float:
        """Predicts how long so many tokens take beside the engines that share the device now."""
        seconds = self._meter.seconds(tokens, self._scheduler.max_batch_tokens, self._idle_until())
        return seconds * self._clock.sharers(self)

    def _idle_until(self) -> float:
        """Up to when nothing has run since the last batch."""
        started = self._batch_started
        return monotonic() if started is None else started

    # The device thread

    def _run(self) -> None:
        try:
            while self._fill_up():
                self._deliver(self._score(self._flights.popleft()))
        except BaseException as error:  # whatever ends this thread must not leave anybody waiting
            log.critical("the device thread of %s died: %s", self._name, describe(error))
            self._die(hung=isinstance(error, DeviceLost))

    def _fill_up(self) -> bool:
        """Launches batches until the device has enough of them, and waits for work if it has none.

        False when the engine closes or has been given up, once all have landed.
        """
        while len(self._flights) < self._launcher.depth and not self._ended.is_set():
            if items := self._take_batch():
                self._flights.append(self._launcher.launch(items))
            elif self._flights:
                break
            else:
                self._wakeups.get()
        return bool(self._flights)

    def _take_batch(self) -> list[Item]:
        """Takes the next batch and fails expired requests.

        It is separate from the waiting, so that a sleeping device thread refers to no request.
        """
        now = monotonic()
        with self._lock:
            self._scheduler.drop_finished()
            expired = self._scheduler.expire(now)
            items = self._scheduler.next_batch(now)
            self._idle = not (items or self._flights)
            if items and not self._flights:
                self._batch_started = now
                self._turn = self._clock.enter(self, now)
        for request in expired:
            request.fail(DeadlineExceeded("the deadline passed while the call was queued"))
        return items

    def _score(self, flight: Flight) -> list[Scored]:
        """Waits for a batch; if that failed, runs it in halves, until the culprit stands alone."""
        items, tokens = flight.items, tokens_of(flight.items)
        try:
            outputs = flight.land()
        except DeviceLost:
            raise
        except Exception as error:
            self._turn = self._clock.read(monotonic())
            return self._score_apart(items, tokens, error)
        self._measure(tokens)
        return [
            (item, InternalError() if output is None else output)
            for item, output in zip(items, outputs, strict=True)
        ]

    def _measure(self, tokens: int) -> None:
        """Counts a batch that has landed, and begins to measure the next one."""
        now = monotonic()
        began, self._turn = self._turn, self._clock.read(now)
        started = self._batch_started
        self._meter.add(
            tokens,
            self._scheduler.max_batch_tokens,
            self._turn - began,
            started=now if started is None else started,
            ended=now,
        )

    def _score_apart(self, items: list[Item], tokens: int, error: Exception) -> list[Scored]:
        out_of_memory = isinstance(error, OutOfMemory)
        if len(items) == 1:
            log.error("a sequence of %d tokens failed alone: %s", tokens, describe(error))
            return [(items[0], _too_large(tokens) if out_of_memory else InternalError())]
        if out_of_memory:
            with self._lock:
                most = max(1, min(self._scheduler.max_batch_tokens, tokens // 2))
                self._scheduler.max_batch_tokens = most
            log.warning("out of memory at %d tokens a batch: now at most %d", tokens, most)
        else:
            log.warning("a batch of %d failed, trying halves: %s", len(items), type(error).__name__)
        with self._lock:
            wanted = self._scheduler.keep_wanted(items)
        middle = len(wanted) // 2
        halves = [half for half in (wanted[:middle], wanted[middle:]) if half]
        return [pair for half in halves for pair in self._score(self._launcher.launch(half))]

    def _deliver(self, scored: list[Scored]) -> None:
        """Hands outputs to all who wait for them, and errors to them alone."""
        now = monotonic()
        outputs: dict[Future, list[tuple[int, Output]]] = {}
        with self._lock:
            self._batch_started = now if self._flights else None
            if not self._flights:
                self._clock.leave(self, now)
            everybody = self._scheduler.finish([item for item, _ in scored])
        for (_, result), waiters in zip(scored, everybody, strict=True):
            for request, index in waiters:
                if isinstance(result, RerankError):
                    request.fail(result)
                else:
                    outputs.setdefault(request, []).append((index, result))
        for request, pairs in outputs.items():
            request.deliver(pairs, now)

    # The watching thread

    def _watch(self) -> None:
        """Looks from time to time, so that no batch has to wake this thread."""
        watchdog = Watchdog(self.settings.hang_seconds)
        while not self._ended.wait(watchdog.interval):
            if watchdog.look(self._batch_started, monotonic()):
                log.critical(
                    "the device of %s has not answered for %g s", self._name, self.settings.hang_seconds
                )
                self._die(hung=True)

    def _end(self) -> None:
        """Makes both threads end."""
        self._ended.set()
        self._wakeups.put(None)

    def _die(self, *, hung: bool) -> None:
        with self._lock:
            if self._death is not None:
                return
            self._death = InternalError()
        self._end()
        self._clock.leave(self, monotonic())
        self._fail_all(self._death)
        self._on_death(hung)

    def _fail_all(self, error: RerankError) -> None:
        with self._lock:
            requests = self._scheduler.requests
            for request in requests:
                self._scheduler.discard(request)
        for request in requests:  # without the lock: what waits for its end may ask this engine something
            request.fail(error)


def _too_large(tokens: int) -> PairTooLarge:
    return PairTooLarge(
        f"one pair of {tokens} tokens exceeds the device's memory: shorten it or use max_tokens_per_document",
        metadata={"tokens": str(tokens)},
    )
