"""The steps of one run: each rate or number of callers in turn, or the search for the highest rate."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from rerank_grpc.loadtest.driver import Driver, Outcome, Stop
from rerank_grpc.loadtest.measures import StepFigures, figures_of
from rerank_grpc.loadtest.plan import arrivals, recorded
from rerank_grpc.loadtest.search import Search
from rerank_grpc.loadtest.slo import Objective
from rerank_grpc.loadtest.texts import Texts
from rerank_grpc.loadtest.transports.base import CallFailed, Transport

RESERVED = 1 << 20  # numbers of texts for each step


@dataclass(frozen=True, slots=True)
class Manner:
    """How each step is run; `times` are those of a recording, of which there is one step."""

    seconds: float
    warm_up: float
    arrivals: str
    seed: int
    objective: Objective
    times: Sequence[float] | None = None
    speed: float = 1.0

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
        self._steps = 0

    async def probe(self) -> None:
        """Sends one call; raises CallFailed where it is not answered, with the server's own text."""
        texts = self._texts.call((1 << 40) + self._manner.seed % (1 << 20))  # of no step
        reply = await self._transport.send(self._transport.body(texts))
        if self._transport.read(reply).results != len(texts.documents):
            raise CallFailed("results missing", "the server's answer lacks results")

    async def sweep(self, rates: Sequence[float]) -> AsyncGenerator[StepFigures]:
        """Runs one step a rate, the lowest first."""
        for rate in rates:
            yield await self.at_rate(rate)
            if self._stop.is_set():
                return

    async def search(self, search: Search) -> AsyncGenerator[StepFigures]:
        """Runs the steps that a search asks for, until it has its verdict."""
        while not self._stop.is_set() and (rate := search.next_rate()) is not None:
            figures = await self.at_rate(rate, "again, " if search.is_confirming else "")
            if figures.cut_short and self._stop.is_set() and not figures.missed:
                yield figures
                return
            search.told(rate, not figures.missed)
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
        manner = self._manner
        plan = recorded(manner.times or (), manner.warm_up, manner.seconds, manner.speed)
        seconds = min(manner.seconds, max(plan[-1].at, 0.0) + 1e-9)
        self._began("as recorded", manner.warm_up + seconds)
        record = await self._driver().open_loop(plan, manner.warm_up, seconds)
        rate = sum(each.at >= 0 for each in plan) / seconds
        return figures_of(record, manner.objective, rate=rate)

    async def in_turn(self, callers: int) -> StepFigures:
        """Runs one step of a closed loop."""
        manner = self._manner
        self._began(f"{callers} callers", manner.warm_up + manner.seconds)
        record = await self._driver().closed_loop(callers, manner.warm_up, manner.seconds, self._first())
        return figures_of(record, manner.objective, callers=callers)

    def _driver(self) -> Driver:
        return Driver(self._transport, self._texts, self._stop, self._seen)

    def _first(self) -> int:
        """The number of a step's first texts: no two steps send the same."""
        self._steps += 1
        return (self._steps - 1) * RESERVED
