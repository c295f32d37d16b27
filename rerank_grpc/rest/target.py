"""One gRPC server behind the shim: its connections, and how it seems to be."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rerank_grpc.client import AsyncClient, QueueFull
from rerank_grpc.client.core import service_config
from rerank_grpc.limits import LIMITS

log = logging.getLogger(__name__)

# The most connections that gRPC may open for rerank calls. gRPC opens one more where the streams that
# a server allows are used up, so that the server, and not a full connection, refuses what is too much.
MAX_CONNECTIONS = 10
STREAMS = LIMITS.streams
RETRY_SECONDS = 1.0

_Answer = TypeVar("_Answer")


class Target:
    """One server, and whether it seemed well when last heard of.

    `probes` has a connection of its own, for what is answered at once, so that
    it never waits behind rerank calls. `takes_none` maps the name of a model
    that takes no instruction to the model that had the name then.
    """

    def __init__(self, name: str, *, retries: int) -> None:
        self.name = name
        self.well = True
        self.takes_none: dict[str, tuple[str, str]] = {}
        self.probes = _connect(name, retries)
        self._client = _connect(name, retries)
        self._calls = 0
        self._asked: dict[str, asyncio.Task[Any]] = {}

    async def probe(
        self, question: str, ask: Callable[[AsyncClient], Coroutine[Any, Any, _Answer]]
    ) -> _Answer:
        """Asks over the probes' connection; callers with the same question under way share its answer.

        Public routes ask these at any caller's will. A caller that leaves takes
        the answer from no other.
        """
        task: asyncio.Task[_Answer] | None = self._asked.get(question)
        if task is None:
            task = self._asked[question] = asyncio.create_task(ask(self.probes))
            task.add_done_callback(lambda done: self._answered(question, done))
        return await asyncio.shield(task)

    def _answered(self, question: str, task: asyncio.Task[Any]) -> None:
        del self._asked[question]
        if not task.cancelled():
            task.exception()  # seen, also where every caller has left: asyncio would log it

    @contextmanager
    def calling(self) -> Iterator[AsyncClient]:
        """Gives the client for one rerank call; raises QueueFull where a call might wait for a stream."""
        if self._calls >= MAX_CONNECTIONS * STREAMS:
            raise QueueFull("too many calls are in progress", retry_after=RETRY_SECONDS)
        self._calls += 1
        try:
            yield self._client
        finally:
            self._calls -= 1

    def mark(self, well: bool) -> None:
        """Notes whether the server seems well."""
        if well is not self.well:
            log.warning("rerank server %s is %s", self.name, "back" if well else "away")
        if not well:
            self.takes_none.clear()
        self.well = well

    async def close(self) -> None:
        """Ends all calls."""
        await self.probes.close()
        await self._client.close()


def _connect(name: str, retries: int) -> AsyncClient:
    """Makes a client that shares no connection with another, and opens further ones as calls need them."""
    config = json.loads(service_config(retries))
    config["connectionScaling"] = {"maxConnectionsPerSubchannel": MAX_CONNECTIONS}
    options = (("grpc.service_config", json.dumps(config)), ("grpc.use_local_subchannel_pool", 1))
    return AsyncClient(name, retries=0, options=options)
