"""One gRPC server behind the shim: its connections, and how it seems to be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rerank_grpc.client import AsyncClient, QueueFull
from rerank_grpc.client.core import service_config
from rerank_grpc.config import Limits

log = logging.getLogger(__name__)

# How many rerank calls go over one connection: a server lets at least so many in. A
# further one would wait here without a word until another has ended.
STREAMS = Limits().streams
# How many connections there are at most. A server that answers refuses sooner: it
# admits fewer calls than go over all these.
MAX_CONNECTIONS = 16
RETRY_SECONDS = 1.0


@dataclass(slots=True)
class _Connection:
    client: AsyncClient
    calls: int = 0


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
        self._retries = retries
        self.probes = self._connect()
        self._connections: list[_Connection] = []

    @contextmanager
    def stream(self) -> Iterator[AsyncClient]:
        """Gives the client for one rerank call; raises QueueFull where all connections are full."""
        connection = next((c for c in self._connections if c.calls < STREAMS), None)
        if connection is None:
            if len(self._connections) >= MAX_CONNECTIONS:
                raise QueueFull("too many calls are in progress", retry_after=RETRY_SECONDS)
            connection = _Connection(self._connect())
            self._connections.append(connection)
        connection.calls += 1
        try:
            yield connection.client
        finally:
            connection.calls -= 1

    def mark(self, well: bool) -> None:
        """Notes whether the server seems well."""
        if well is not self.well:
            log.warning("rerank server %s is %s", self.name, "back" if well else "away")
        if not well:
            self.takes_none.clear()
        self.well = well

    async def close(self) -> None:
        """Ends all calls."""
        for client in (self.probes, *(connection.client for connection in self._connections)):
            await client.close()

    def _connect(self) -> AsyncClient:
        """Makes a client whose connection no other one shares."""
        config = service_config(self._retries)
        options = (("grpc.service_config", config), ("grpc.use_local_subchannel_pool", 1))
        return AsyncClient(self.name, retries=0, options=options)
