"""Runs a driver against a target, as the command does."""

import asyncio
from pathlib import Path

from rerank_grpc.client import AsyncClient
from rerank_grpc.loadtest.clock import precise_loop
from rerank_grpc.loadtest.driver import Driver, Stop
from rerank_grpc.loadtest.texts import DrawnRange, MadeTexts
from rerank_grpc.loadtest.transports.over_grpc import GrpcTransport
from tests.command import changed

DRIVER = "rerank_grpc.loadtest.driver"
BEHIND_SECONDS = 60.0  # a pause of a second, as a busy machine makes, would end a driver's step
TEXTS = MadeTexts(1, DrawnRange(1, 3), DrawnRange(5, 20))


def unhurried_commands(folder: Path) -> dict[str, str]:
    """Makes variables with which the driver of a command may be late."""
    return changed(folder, DRIVER, BEHIND_SECONDS=BEHIND_SECONDS)


def over_grpc(target, work, *, timeout=20.0, stop_after=None, kind=Driver):
    """Runs `work` with a driver over gRPC; `stop_after` so many calls it is interrupted."""

    async def main():
        transport = GrpcTransport(AsyncClient(target, timeout=timeout, retries=0), "")
        stop, seen = Stop(), []

        def count(outcome):
            seen.append(outcome)
            if len(seen) == stop_after:
                stop.set("Ctrl-C")

        try:
            return await work(kind(transport, TEXTS, stop, count))
        finally:
            await transport.close()

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(main())
