"""The steps of one run: each rate or number of callers in turn, or the search for the highest rate."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rerank_grpc.loadtest.driver import Cut, Driver, Outcome, Stop
from rerank_grpc.loadtest.measures import StepFigures, figures_of
from rerank_grpc.loadtest.plan import RecordedPlan, arrivals
from rerank_grpc.loadtest.search import Search
from rerank_grpc.loadtest.slo import Objective
from rerank_grpc.loadtest.texts import Texts
from rerank_grpc.loadtest.transports.base import CallFailed, Transport

RESERVED = 1 << 20  # numbers of texts for each step
RECOVERY_SECONDS = 30.0  # that a search waits for an answer behind a rate that missed
RETRY_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Manner:
    """How each step is run; `recording` is a plan of recorded times, of which there is one step."""

    seconds: float
    warm_up: float
    arrivals: str
    seed: int
    objective: Objective
    recording: RecordedPlan | None = None

    def seconds_at(self, rate: float) -> float:
        """The measured time at a rate: long enough for the calls that a verdict needs."""
        return max(self.seconds, self.objective.least_calls / rate)


class Bench:
    """Runs steps over one transport; `began` is told of each step, `seen` of each call that is over."""

    def __init__(
        self,
        transport: Transport,
        texts: Texts,
        manner: Manner,
        stop: Stop,
        began: Callable[[str, float], None] = lambda *_: None,
        seen: Callable[[Outcome], None] | None = None,
    ) -> None:
        self._transport, self._texts, self._manner, self._stop = transport, texts, manner, stop
        self._began, self._seen = began, seen
        self._steps = self._probes = 0

    async def probe(self) -> None:
        """Sends one call; raises CallFailed where it is not answered, with the server's own text."""
        self._probes += 1
        number = (1 << 40) + self._probes * RESERVED + self._manner.seed % RESERVED  # of no step
        texts = self._texts.call(number)
        reply = await self._transport.send(self._transport.body(texts))
        if self._transport.read(reply).results != len(texts.documents):
            raise CallFailed("results missing", "the server's answer lacks results")

    async def sweep(self, rates: Sequence[float]) -> AsyncGenerator[StepFigures]:
        """Runs one step a rate, the lowest first, until one is cut short."""
        for rate in rates:
            figures = await self.at_rate(rate)
            yield figures
            if figures.cut is not None or self._stop.is_set():
                return

    async def search(self, search: Search) -> AsyncGenerator[StepFigures]:
        """Runs the steps that a search asks for, until it has its verdict or cannot go on.

        A step that a person interrupts is no verdict on its rate. Behind a rate that missed, the next step
        begins once the server answers again; one that does not is away, and its rate is not judged.
        """
        while not self._stop.is_set() and (rate := search.next_rate()) is not None:
            figures = await self.at_rate(rate, "again, " if search.is_confirming else "")
            if figures.cut is Cut.BEHIND:
                search.give_up(f"the driver cannot keep to {rate:.4g} calls/s")
            elif figures.cut is Cut.INTERRUPTED:
                pass  # the run's end
            elif not figures.missed or await self._answers_again():
                search.told(rate, not figures.missed)
            elif not self._stop.is_set():
                search.give_up(f"no call was answered for {RECOVERY_SECONDS:.0f} s behind {rate:.4g} calls/s")
            yield figures

    async def at_rate(self, rate: float, how: str = "") -> StepFigures:
        """Runs one step of an open loop."""
        manner, seconds = self._manner, self._manner.seconds_at(rate)
        self._began(f"{how}{rate:.4g} calls/s", manner.warm_up + seconds)
        chance = random.Random(f"{manner.seed} arrivals {self._steps}")
        plan = arrivals(manner.arrivals, rate, manner.warm_up, seconds, chance, self._first())
        record = await self._driver().open_loop(plan, manner.warm_up, seconds)
        return figures_of(record, manner.objective, rate=rate)

    async def recording(self) -> StepFigures:
        """Runs the recorded calls at their times."""
        plan = self._manner.recording
        assert plan is not None
        self._began("as recorded", plan.warm_up + plan.seconds)
        record = await self._driver().open_loop(plan.calls, plan.warm_up, plan.seconds)
        return figures_of(record, self._manner.objective, rate=plan.rate)

    async def in_turn(self, callers: int) -> StepFigures:
        """Runs one step of a closed loop."""
        manner = self._manner
        self._began(f"{callers} callers", manner.warm_up + manner.seconds)
        record = await self._driver().closed_loop(callers, manner.warm_up, manner.seconds, self._first())
        return figures_of(record, manner.objective, callers=callers)

    async def _answers_again(self) -> bool:
        """Waits for an answer to one call alone: what an overload left in the queue is done by then."""

        async def ask() -> None:
            while True:
                with suppress(CallFailed):
                    return await self.probe()
                if self._probes == first:
                    self._began("no answer yet, asking again", RECOVERY_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)

        first = self._probes + 1
        asking, stopped = asyncio.create_task(ask()), asyncio.create_task(self._stop.wait())
        done, left = await asyncio.wait(
            {asking, stopped}, timeout=RECOVERY_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        for task in left:
            task.cancel()
        return asking in done and asking.result() is None

    def _driver(self) -> Driver:
        return Driver(self._transport, self._texts, self._stop, self._seen)

    def _first(self) -> int:
        """The number of a step's first texts: no two steps send the same."""
        self._steps += 1
        return (self._steps - 1) * RESERVED
