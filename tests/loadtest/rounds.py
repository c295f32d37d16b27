"""One round beside the simulated queue, as JSON; run by tests, in a process of its own.

    python -m tests.loadtest.rounds planned|in-turn SEED [SERVICE_SECONDS UTILISATION SECONDS]

A call that waits for no other takes 2 to 3 ms more than its service, which by default is little beside it.
Where it may, the round goes before what else the machine does, whose pauses are not the driver's.
"""

import asyncio
import contextlib
import json
import os
import random
import sys

from benchmarks.fixed_service import fixed_service, waited
from rerank_grpc.loadtest.driver import Driver
from rerank_grpc.loadtest.measures import figures_of, percentile
from rerank_grpc.loadtest.plan import arrivals
from rerank_grpc.loadtest.slo import Objective
from tests.loadtest.support import over_grpc

WARM_UP = 0.5


class InTurn(Driver):
    """The mistake: a call is sent when the last one is answered, and its latency counts from then."""

    async def open_loop(self, plan, warm_up, seconds):
        """Sends the plan's calls one after the other."""

        async def send_all():
            for planned in plan:
                texts = self._texts.call(planned.number)
                await asyncio.sleep(max(0.0, planned.at - self._now()))
                await self._one(self._now(), self._transport.body(texts), len(texts.documents))

        return await self._measured(send_all(), warm_up, seconds, set())


def measured(kind, seed, service, utilisation, seconds):
    """Runs the round; `ratios` are the driver's percentiles ÷ the simulated queue's."""
    rate = utilisation / service
    plan = arrivals("poisson", rate, WARM_UP, seconds, random.Random(seed), seed << 20)
    with fixed_service(service) as (target, _):
        record = over_grpc(target, lambda driver: driver.open_loop(plan, WARM_UP, seconds), kind=kind)
    figures = figures_of(record, Objective(), rate=rate)
    queue = zip(waited(plan, service), plan, strict=True)
    expected = sorted(seconds for seconds, call in queue if call.at >= 0)
    ratios = {p: round((figures.percentile(p) or 0.0) / percentile(expected, p), 4) for p in (50, 90, 95, 99)}
    return {"late": figures.late_p99, "ratios": ratios, "calls": figures.calls, "doubts": figures.doubts}


def main(manner, seed, service="0.2", utilisation="0.7", seconds="20"):
    """Prints the round."""
    with contextlib.suppress(AttributeError, PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    kind = {"planned": Driver, "in-turn": InTurn}[manner]
    print(json.dumps(measured(kind, int(seed), float(service), float(utilisation), float(seconds))))


if __name__ == "__main__":
    main(*sys.argv[1:])
