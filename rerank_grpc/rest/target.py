"""One gRPC server behind the shim: its connections, and how it seems to be."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rerank_grpc.client import AsyncClient, QueueFull
from rerank_grpc.client.core import service_config
from rerank_grpc.config import Limits

log = logging.getLogger(__name__)

# How many connections gRPC may open for rerank calls. A server lets at least so many
# calls into each, so that it is the server that refuses what is too much, at once.
MAX_CONNECTIONS = 10
STREAMS = Limits().streams
RETRY_SECONDS = 1.0


class Target:
    """One server, and whether it seemed well when last heard of.

    `probes` has a connection of its own, for what is answered at once, so that
    it never waits behind rerank calls. `takes_none` has what models were called
    that take no instruction, and which model that was then.
    """

    def __init__(self, name: str, *, retries: int) -> None:
        self.name = name
        self.well = True
        self.takes_none: dict[str, tuple[str, str]] = {}
        self.probes = _connect(name, retries)
        self._client = _connect(name, retries)
        self._calls = 0

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
