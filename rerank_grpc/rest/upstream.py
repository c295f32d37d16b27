"""The gRPC servers behind REST: round robin over those that answer."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from rerank_grpc.client import AsyncClient, ServerUnavailable, TransportError, UnexpectedStatus
from rerank_grpc.client.core import service_config
from rerank_grpc.errors import (
    DeadlineExceeded,
    ModelFailed,
    ModelLoading,
    QueueFull,
    RerankError,
    ShuttingDown,
    Unauthenticated,
    describe,
)
from rerank_grpc.limits import LIMITS
from rerank_grpc.types import Health, ModelInfo, RerankRequest, RerankResponse, RerankSummary

log = logging.getLogger(__name__)

# The pause between two looks at the health of each of several servers, and the time of one.
WATCH_SECONDS = 2.0
# A probe by a public route that takes longer counts as failed anyhow.
PROBE_SECONDS = 5.0
# The requests of one call, one for each query that differs, that are under way at once.
CONCURRENCY = 8
# The most connections that gRPC may open for rerank calls. gRPC opens one more where the streams that
# a server allows are used up, so that the server, and not a full connection, refuses a call too many.
MAX_CONNECTIONS = 10
STREAMS = LIMITS.streams
# Another server may answer where this one is away, or its model is.
ELSEWHERE = (ServerUnavailable, ShuttingDown, ModelLoading, ModelFailed)

_Answer = TypeVar("_Answer")
# A method of the client that needs no more than a time and a token.
Question = Callable[..., Coroutine[Any, Any, _Answer]]


class UpstreamServer:
    """One gRPC server, and whether it seemed well when last heard of.

    `probes` has a connection of its own for calls that are answered at once:
    they never wait behind rerank calls.
    """

    def __init__(self, name: str, *, retries: int) -> None:
        self.name = name
        self.well = True
        self.probes = _connect(name, retries)
        self._client = _connect(name, retries)
        self._calls = 0
        self._asked: dict[object, asyncio.Task[Any]] = {}

    async def rerank(
        self, request: RerankRequest, timeout: float, metadata: Mapping[str, str]
    ) -> RerankResponse:
        """Sends one rerank call; raises QueueFull where it might wait for a stream."""
        if self._calls >= MAX_CONNECTIONS * STREAMS:
            raise QueueFull("too many calls are in progress")
        # Clients of other APIs send an instruction whether or not the model takes one.
        request = request._replace(ignore_unsupported_options=True)
        self._calls += 1
        try:
            response = await self._client.send(request, timeout=timeout, metadata=metadata)
        finally:
            self._calls -= 1
        self.mark(True)
        return response

    async def probe(self, question: Question[_Answer], token: str | None) -> _Answer:
        """Asks over the probes' connection; callers with the same question under way share its answer.

        Public routes ask at any caller's will. A caller that leaves takes the
        answer from no other.
        """
        key = question, token
        task: asyncio.Task[_Answer] | None = self._asked.get(key)
        if task is None:
            asking = question(self.probes, timeout=PROBE_SECONDS, metadata=authorization(token))
            task = self._asked[key] = asyncio.create_task(asking)
            task.add_done_callback(lambda done: self._answered(key, done))
        return await asyncio.shield(task)

    def _answered(self, key: object, task: asyncio.Task[Any]) -> None:
        del self._asked[key]
        if not task.cancelled():
            task.exception()  # seen, also where every caller has left: asyncio would log it

    def mark(self, well: bool) -> None:
        """Notes whether the server seems well."""
        if well is not self.well:
            log.warning("rerank server %s is %s", self.name, "back" if well else "away")
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


class Upstream:
    """Calls the servers; made before its loop runs, used from that loop alone.

    An overloaded server's refusal goes to the caller at once: callers of REST
    have their own retries, and sockets that wait here would pile up.
    """

    def __init__(self, targets: Sequence[str], *, token: str | None = None) -> None:
        self._token = token
        # Alone, gRPC itself tries again while the server restarts; of several, the next one is asked.
        retries = 0 if len(targets) > 1 else 3
        self._servers = [UpstreamServer(name, retries=retries) for name in targets]
        self._next = 0
        self._watcher: asyncio.Task[None] | None = None
        # Of each model its revision and device, of which a reply to a rerank call tells only the first.
        self._devices: dict[str, tuple[str, str]] = {}

    async def start(self) -> None:
        """Starts to watch the servers' health, where there are several."""
        if len(self._servers) > 1:
            self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Ends all calls."""
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        for server in self._servers:
            await server.close()

    async def rerank_all(
        self, requests: Sequence[RerankRequest], timeout: float, metadata: Mapping[str, str]
    ) -> list[RerankResponse]:
        """Asks several requests at a time, all within `timeout` seconds; the first failure ends them."""
        deadline = time.monotonic() + timeout
        under_way = asyncio.Semaphore(CONCURRENCY)

        async def ask(request: RerankRequest) -> RerankResponse:
            async with under_way:
                return await self._call(lambda server: server.rerank(request, _remaining(deadline), metadata))

        if len(requests) == 1:
            return [await ask(requests[0])]
        tasks = [asyncio.create_task(ask(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def device(self, summary: RerankSummary, timeout: float, token: str | None) -> str:
        """Tells the device of a model that has answered, "" where that fails or would be late."""
        revision, device = self._devices.get(summary.model, ("", ""))
        if device and revision == summary.model_revision:
            return device
        if timeout <= 0:
            return ""
        with suppress(RerankError):
            for model in await self.models(token, timeout):
                if (model.name, model.revision) == (summary.model, summary.model_revision):
                    self._devices[model.name] = model.revision, model.device
                    return model.device
        return ""

    async def models(self, token: str | None, timeout: float = PROBE_SECONDS) -> tuple[ModelInfo, ...]:
        """Lists the models, with a caller's token."""
        metadata = authorization(token)
        return await self._call(lambda server: server.probes.list_models(timeout=timeout, metadata=metadata))

    async def health(self, token: str | None, model: str) -> Health:
        """Asks for a model's health, with a caller's token."""
        metadata = authorization(token)
        return await self._call(
            lambda server: server.probes.health(model, timeout=PROBE_SECONDS, metadata=metadata)
        )

    async def own_models(self) -> tuple[ModelInfo, ...]:
        """Lists the models with REST's own token: for public routes, and for nothing else."""
        return await self._ask_once(AsyncClient.list_models, self._token)

    async def own_health(self) -> Health:
        """Asks for the default model's health, with REST's own token."""
        return await self._ask_once(AsyncClient.health, self._token)

    async def serving(self) -> bool:
        """Asks whether the default model can be called, which needs no token."""
        return await self._ask_once(AsyncClient.serving, None)

    async def needs_token(self) -> bool:
        """Tells whether the servers refuse a caller without a token."""
        try:
            await self._ask_once(AsyncClient.list_models, None)
        except Unauthenticated:
            return True
        return False

    async def _ask_once(self, question: Question[_Answer], token: str | None) -> _Answer:
        """Asks for a public route, one call at a time for each server: see UpstreamServer.probe."""
        return await self._call(lambda server: server.probe(question, token))

    async def _call(self, ask: Callable[[UpstreamServer], Awaitable[_Answer]]) -> _Answer:
        """Asks the servers in turn until one answers, those that seem well first."""
        self._next = (self._next + 1) % len(self._servers)
        turn = self._servers[self._next :] + self._servers[: self._next]
        turn.sort(key=lambda server: not server.well)
        for last, server in enumerate(turn, 1 - len(turn)):
            try:
                return await ask(server)
            except ELSEWHERE as error:
                if isinstance(error, ServerUnavailable | ShuttingDown):
                    server.mark(False)
                    self._devices.clear()
                if last == 0:
                    raise
        raise AssertionError("there is at least one server")

    async def _watch(self) -> None:
        while True:
            await asyncio.gather(*(self._look(server) for server in self._servers))
            await asyncio.sleep(WATCH_SECONDS)

    async def _look(self, server: UpstreamServer) -> None:
        try:
            server.mark(await self._is_well(server))
        except (TransportError, ShuttingDown, DeadlineExceeded):
            server.mark(False)
        except RerankError:
            server.mark(True)  # it refuses us, so it is there
        except Exception as error:
            log.error("the probe of %s failed: %s", server.name, describe(error))

    async def _is_well(self, server: UpstreamServer) -> bool:
        metadata = authorization(self._token)
        try:
            health = await server.probes.health(timeout=WATCH_SECONDS, metadata=metadata)
        except Unauthenticated:
            # Probes of an orchestrator need no token.
            with suppress(UnexpectedStatus):
                return await server.probes.serving(timeout=WATCH_SECONDS)
            raise
        return health.serving


def authorization(token: str | None) -> dict[str, str]:
    """Makes the metadata that carries a token."""
    return {"authorization": f"Bearer {token}"} if token else {}


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise DeadlineExceeded("the deadline passed before the scores were there")
    return remaining
