"""One gRPC server behind REST: its two connections, and whether it seems well."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Self, TypeVar

from rerank_grpc.client import AsyncClient, TransportError, UnexpectedStatus
from rerank_grpc.client.channel import service_config
from rerank_grpc.errors import (
    DeadlineExceeded,
    PermissionDenied,
    QueueFull,
    RerankError,
    ShuttingDown,
    Unauthenticated,
    describe,
    one_line,
)
from rerank_grpc.limits import LIMITS
from rerank_grpc.telemetry.ids import PROCESS_ID, PROCESS_KEY
from rerank_grpc.tls.channel import TlsSources

log = logging.getLogger(__name__)

# A probe by a public route that takes longer counts as failed anyhow.
PROBE_SECONDS = 5.0
# The most connections that gRPC may open for rerank calls. gRPC opens one more where the streams that
# a server allows are used up, so that the server, and not a full connection, refuses a call too many.
CALL_CONNECTIONS = 10
STREAMS = LIMITS.streams
NO_METADATA: Mapping[str, str] = {}
# A gRPC server of this process knows by it that REST has a record of the call.
OURS: Mapping[str, str] = {PROCESS_KEY: PROCESS_ID}

Answer = TypeVar("Answer")
# A method of the client that needs no more than a time and metadata.
Question = Callable[..., Coroutine[Any, Any, Answer]]


class Target:
    """One gRPC server; probes have a connection of their own, and never wait behind rerank calls."""

    def __init__(self, name: str, *, retries: int, tls: TlsSources | None = None) -> None:
        self.well = True
        self._name = name
        self._retries = retries
        self._connections = _Connections(name, retries, tls)
        self._calls = 0
        self._asked: dict[object, asyncio.Task[Any]] = {}

    async def rerank(self, message: bytes, deadline: float, metadata: Mapping[str, str]) -> bytes:
        """Passes on a RerankRequest with a `deadline` of time.monotonic; returns the RerankResponse.

        Raises QueueFull where the call might wait for a stream.
        """
        with self._admitted(deadline) as (client, timeout):
            reply = await client.relay("Rerank", message, timeout=timeout, metadata={**metadata, **OURS})
        self.mark(True)
        return reply

    async def stream(
        self, message: bytes, deadline: float, metadata: Mapping[str, str]
    ) -> AsyncGenerator[bytes, None]:
        """Passes on a StreamRerankRequest as `rerank` does; yields each StreamRerankResponse as it comes."""
        with self._admitted(deadline) as (client, timeout):
            sent = client.relay_stream(message, timeout=timeout, metadata={**metadata, **OURS})
            async with aclosing(sent) as parts:
                async for part in parts:
                    self.mark(True)
                    yield part

    @contextmanager
    def _admitted(self, deadline: float) -> Iterator[tuple[AsyncClient, float]]:
        """Counts a call of texts while it lasts; yields the client for it, and the seconds that it has."""
        timeout = deadline - time.monotonic()
        if timeout <= 0:
            raise DeadlineExceeded("the deadline passed before the scores were there")
        if self._calls >= CALL_CONNECTIONS * STREAMS:
            raise QueueFull("too many calls are in progress")
        self._calls += 1
        try:
            with self._connections as own:
                yield own.client, timeout
        finally:
            self._calls -= 1

    async def ask(
        self,
        question: Question[Answer],
        token: str | None,
        timeout: float = PROBE_SECONDS,
        metadata: Mapping[str, str] = NO_METADATA,
    ) -> Answer:
        with self._connections as own:
            return await question(
                own.probes, timeout=timeout, metadata={**authorization(token), **metadata, **OURS}
            )

    async def probe(self, question: Question[Answer], token: str | None) -> Answer:
        """Asks for a public route; callers of one question share its answer, and none ends it by leaving."""
        key = question, token
        task: asyncio.Task[Answer] | None = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.create_task(self.ask(question, token))
            task.add_done_callback(lambda done: self._answered(key, done))
        return await asyncio.shield(task)

    def _answered(self, key: object, task: asyncio.Task[Any]) -> None:
        del self._asked[key]
        if not task.cancelled():
            task.exception()  # seen, also where every caller has left: asyncio would log it

    async def look(self, token: str | None, timeout: float) -> None:
        """Finds out whether the server is well; raises nothing."""
        try:
            self.mark(await self._is_well(token, timeout))
        except (TransportError, ShuttingDown, DeadlineExceeded) as error:
            self.mark(False, error)
        except RerankError:
            self.mark(True)  # it refuses us, so it is there
        except Exception as error:
            log.error("the probe of %s failed: %s", self._name, describe(error))

    async def _is_well(self, token: str | None, timeout: float) -> bool:
        try:
            return (await self.ask(AsyncClient.health, token, timeout)).serving
        except (Unauthenticated, PermissionDenied):
            # Probes of an orchestrator need no token.
            with suppress(UnexpectedStatus):
                return await self.ask(AsyncClient.serving, None, timeout)
            raise

    def mark(self, well: bool, error: RerankError | None = None) -> None:
        """Notes whether the server is well; a change is logged, with the error that told it."""
        if well is not self.well:
            reason = f": {one_line(error.message)}" if error else ""
            log.warning("rerank server %s is %s%s", self._name, "back" if well else "away", reason)
        self.well = well

    def renew(self, tls: TlsSources) -> None:
        """Makes new connections, with other certificates; calls in progress end on those that they are on."""
        self._connections.leave()
        self._connections = _Connections(self._name, self._retries, tls)

    async def close(self) -> None:
        await self._connections.close()


class _Connections:
    """The connections to a server for calls and for probes; entered for each call on one of them."""

    def __init__(self, name: str, retries: int, tls: TlsSources | None) -> None:
        self.client = _connect(name, retries, tls)
        self.probes = _connect(name, retries, tls)
        self._calls = 0
        self._left = False
        self._closing: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """Closes them once no call is on them."""
        self._left = True
        if not self._calls:
            self._closing = asyncio.get_running_loop().create_task(self.close())

    async def close(self) -> None:
        await self.probes.close()
        await self.client.close()

    def __enter__(self) -> Self:
        self._calls += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._calls -= 1
        if self._left:
            self.leave()


def _connect(name: str, retries: int, tls: TlsSources | None) -> AsyncClient:
    """Makes a client that shares no connection with another, and opens further ones as calls need them."""
    config = json.loads(service_config(retries))
    config["connectionScaling"] = {"maxConnectionsPerSubchannel": CALL_CONNECTIONS}
    options = (("grpc.service_config", json.dumps(config)), ("grpc.use_local_subchannel_pool", 1))
    return AsyncClient(name, retries=0, options=options, **(tls.arguments() if tls else {}))


def authorization(token: str | None) -> dict[str, str]:
    """Makes the metadata that carries a token."""
    return {"authorization": f"Bearer {token}"} if token else {}
