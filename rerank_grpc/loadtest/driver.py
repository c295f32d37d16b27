"""Sends calls: at planned times whatever the answers do, or as many callers in turn as are asked for.

A call's latency counts from the time that it was planned for, not from when it was sent: a driver, a
connection or a loop that falls behind makes the latency longer, and never hides a queue.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from rerank_grpc.loadtest.plan import PlannedCall
from rerank_grpc.loadtest.texts import Texts
from rerank_grpc.loadtest.transports.base import CallFailed, Transport

LEAD_SECONDS = 0.05  # between the plan's making and its first call
HOPELESS_SECONDS = 5.0  # for so long, and so many calls, nothing but failures ends a step
HOPELESS_CALLS = 10
BEHIND_SECONDS, BEHIND_SHARE = 1.0, 0.1  # of the measured time: further behind its plan a driver gives up


class Cut(StrEnum):
    """Why a step ended early."""

    INTERRUPTED = "interrupted"  # by a person
    HOPELESS = "hopeless"  # nothing was answered any more
    BEHIND = "behind"  # the driver could not keep to its plan


class Outcome(NamedTuple):
    """One call that is over; times are seconds after the measured time began.

    `reason` is "" for a call that was answered with scores.
    """

    planned: float
    sent: float
    ended: float
    documents: int
    reason: str = ""
    tokens: int | None = None
    cached: int | None = None

    @property
    def latency(self) -> float:
        """The seconds from when it was to be sent until its answer was there."""
        return self.ended - self.planned

    @property
    def lateness(self) -> float:
        """The seconds that the driver was late."""
        return self.sent - self.planned


@dataclass(slots=True)
class Record:
    """The calls of one step, in so many measured seconds; `cut` and `cut_short` say why it ended early."""

    seconds: float
    outcomes: list[Outcome] = field(default_factory=list)
    unfinished: int = 0  # calls that were in progress when it was cut short
    cut: Cut | None = None
    cut_short: str = ""
    processor_seconds: float = 0.0  # that this process used meanwhile
    wall_seconds: float = 0.0


class Stop:
    """Ends early: a run, as a person asks for, or a step that gives up."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.why = ""

    def set(self, why: str) -> None:
        """Ends it; the first reason stays."""
        self.why = self.why or why
        self._event.set()

    def is_set(self) -> bool:
        """Whether it is to end."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Waits until it is to end."""
        await self._event.wait()


class Driver:
    """Sends the calls of one step over a transport; `seen` is told of each that is over.

    `stop` is the run's, which a person ends. A step that gives up ends itself alone.
    """

    def __init__(
        self, transport: Transport, texts: Texts, stop: Stop, seen: Callable[[Outcome], None] | None = None
    ) -> None:
        self._transport, self._texts, self._stop, self._seen = transport, texts, stop, seen
        self._given_up, self._cut = Stop(), Cut.HOPELESS
        self._outcomes: list[Outcome] = []
        self._start = 0.0
        self._failing_since: float | None = None
        self._failed_in_a_row = 0

    async def open_loop(self, plan: Sequence[PlannedCall], warm_up: float, seconds: float) -> Record:
        """Sends each call at its planned time and waits for all answers at the end."""
        calls: set[asyncio.Task[None]] = set()

        async def send_all() -> None:
            for planned in plan:
                texts = self._texts.call(planned.number)
                body = self._transport.body(texts)
                # A driver that is behind must yield too: what it sends and Ctrl-C are the loop's work.
                await asyncio.sleep(max(0.0, planned.at - self._now()))
                self._look_behind(self._now() - planned.at, seconds)
                calls.add(call := asyncio.create_task(self._one(planned.at, body, len(texts.documents))))
                call.add_done_callback(calls.discard)
            await asyncio.sleep(max(0.0, seconds - self._now()))
            if calls:
                await asyncio.wait(set(calls))

        return await self._measured(send_all(), warm_up, seconds, calls)

    async def closed_loop(self, callers: int, warm_up: float, seconds: float, first: int) -> Record:
        """Has each of so many callers call again as soon as it is answered."""
        numbers = iter(range(first, 1 << 62))

        async def call_in_turn() -> None:
            while self._now() < seconds:
                texts = self._texts.call(next(numbers))
                body = self._transport.body(texts)
                await self._one(self._now(), body, len(texts.documents))

        calls = set[asyncio.Task[None]]()

        async def run_all() -> None:
            calls.update(asyncio.create_task(call_in_turn()) for _ in range(callers))
            for call in set(calls):
                call.add_done_callback(calls.discard)
            await asyncio.wait(set(calls))

        return await self._measured(run_all(), warm_up, seconds, calls)

    async def _measured(
        self, work: Awaitable[None], warm_up: float, seconds: float, calls: set[asyncio.Task[None]]
    ) -> Record:
        """Runs the calls to their end or until the step is stopped, whichever is first."""
        with _uncollected():
            self._start = time.perf_counter() + LEAD_SECONDS + warm_up
            began, processor = time.perf_counter(), time.process_time()
            working = asyncio.ensure_future(work)
            ends = {asyncio.create_task(each.wait()) for each in (self._stop, self._given_up)}
            await asyncio.wait({working, *ends}, return_when=asyncio.FIRST_COMPLETED)
            record = Record(seconds, processor_seconds=time.process_time() - processor)
            record.wall_seconds = time.perf_counter() - began
        for end in ends:
            end.cancel()
        if not working.done():
            interrupted = self._stop.is_set()
            record.cut = Cut.INTERRUPTED if interrupted else self._cut
            record.cut_short = (self._stop if interrupted else self._given_up).why
            record.unfinished = len(calls)
            record.seconds = max(0.0, min(seconds, self._now()))
            for task in {working, *calls}:
                task.cancel()
            await asyncio.wait({working, *calls})
        with suppress(asyncio.CancelledError):
            working.result()
        record.outcomes = self._outcomes
        return record

    async def _one(self, planned: float, body: bytes, documents: int) -> None:
        sent = self._now()
        try:
            reply = await self._transport.send(body)
            ended = self._now()
            told = self._transport.read(reply)
            if told.results != documents:
                raise CallFailed("results missing", f"{told.results} results of {documents} documents")
        except CallFailed as error:
            outcome = Outcome(planned, sent, self._now(), documents, error.reason)
        else:
            outcome = Outcome(planned, sent, ended, documents, "", told.tokens, told.cached)
        self._outcomes.append(outcome)
        self._look(outcome)
        if self._seen is not None:
            self._seen(outcome)

    def _look(self, outcome: Outcome) -> None:
        """Ends the step where for a while nothing has been answered."""
        if not outcome.reason:
            self._failing_since, self._failed_in_a_row = None, 0
            return
        if self._failing_since is None:
            self._failing_since = outcome.ended
        self._failed_in_a_row += 1
        failing = outcome.ended - self._failing_since
        if failing >= HOPELESS_SECONDS and self._failed_in_a_row >= HOPELESS_CALLS:
            self._give_up(Cut.HOPELESS, f"no call was answered for {failing:.0f} s")

    def _look_behind(self, behind: float, seconds: float) -> None:
        """Ends the step where the driver is far behind its plan."""
        if behind > max(BEHIND_SECONDS, BEHIND_SHARE * seconds):
            self._give_up(Cut.BEHIND, f"the driver was {behind:.1f} s behind its plan")

    def _give_up(self, cut: Cut, why: str) -> None:
        if not self._given_up.is_set():
            self._cut = cut
            self._given_up.set(why)

    def _now(self) -> float:
        return time.perf_counter() - self._start


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps what is there out of the collector's passes, which stop all calls while they last."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
