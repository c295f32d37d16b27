"""The gRPC servers behind the shim: round robin over those that answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from rerank_grpc.client import (
    AsyncClient,
    Health,
    ModelFailed,
    ModelInfo,
    ModelLoading,
    RerankError,
    RerankResponse,
    ServerUnavailable,
    ShuttingDown,
    State,
    TransportError,
    Unauthenticated,
    UnsupportedOption,
)
from rerank_grpc.client.core import service_config
from rerank_grpc.errors import DeadlineExceeded, describe
from rerank_grpc.types import RerankRequest

log = logging.getLogger(__name__)

# How often a server is asked for its health where there are several, and how long it may take.
PROBE_SECONDS = 2.0
# How many requests of one call, one for each query that differs, are under way at once.
CONCURRENCY = 8
# What is worth asking another server for: this one is away, or its model is.
ELSEWHERE = (ServerUnavailable, ShuttingDown, ModelLoading, ModelFailed)

_Answer = TypeVar("_Answer")


class Upstream:
    """Calls the servers; made before its loop runs, used from that loop alone.

    An overloaded server's refusal goes to the caller at once: the callers of
    the shim have their own retries, and sockets that wait here would pile up.
    """

    def __init__(self, targets: Sequence[str], *, token: str | None = None) -> None:
        self._token = token
        several = len(targets) > 1
        # Alone, gRPC itself tries again while the server restarts; of several, the next one is asked.
        config = service_config(0 if several else 3)
        self._targets = [
            _Target(name, AsyncClient(name, retries=0, options=[("grpc.service_config", config)]))
            for name in targets
        ]
        self._next = 0
        self._probe: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts to watch the servers' health, where there are several."""
        if len(self._targets) > 1:
            self._probe = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Ends all calls."""
        if self._probe is not None:
            self._probe.cancel()
            with suppress(asyncio.CancelledError):
                await self._probe
        for target in self._targets:
            await target.client.close()

    async def rerank_all(
        self, requests: Sequence[RerankRequest], timeout: float, metadata: Mapping[str, str]
    ) -> list[RerankResponse]:
        """Asks several requests at a time, all within `timeout` seconds; the first failure ends them."""
        deadline = time.monotonic() + timeout
        if len(requests) == 1:
            return [await self.rerank(requests[0], deadline, metadata)]
        room = asyncio.Semaphore(CONCURRENCY)

        async def ask(request: RerankRequest) -> RerankResponse:
            async with room:
                return await self.rerank(request, deadline, metadata)

        tasks = [asyncio.create_task(ask(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def rerank(
        self, request: RerankRequest, deadline: float, metadata: Mapping[str, str]
    ) -> RerankResponse:
        """Scores one request; an instruction to a model that takes none is left out."""
        try:
            return await self._rerank(request, request.instruction, deadline, metadata)
        except UnsupportedOption as error:
            if not request.instruction or error.violations[0].field != "instruction":
                raise
            return await self._rerank(request, "", deadline, metadata)

    async def _rerank(
        self, request: RerankRequest, instruction: str, deadline: float, metadata: Mapping[str, str]
    ) -> RerankResponse:
        def call(client: AsyncClient) -> Awaitable[RerankResponse]:
            return client.rerank(
                request.query,
                request.documents,
                request.model,
                request.top_n,
                timeout=_remaining(deadline),
                metadata=metadata,
                instruction=instruction,
                max_tokens_per_document=request.max_tokens_per_document,
                truncation=request.truncation,
                max_chunks_per_document=request.max_chunks_per_document,
            )

        return await self._call(call)

    async def models(self, timeout: float, token: str | None) -> tuple[ModelInfo, ...]:
        """Lists the models, with a caller's token."""
        metadata = authorization(token)
        return await self._call(lambda client: client.list_models(timeout=timeout, metadata=metadata))

    async def own_models(self, timeout: float) -> tuple[ModelInfo, ...]:
        """Lists the models with the shim's own token: for what is public, and for nothing else."""
        return await self.models(timeout, self._token)

    async def health(self, timeout: float) -> Health:
        """Asks for the default model's health, with the shim's own token."""
        metadata = authorization(self._token)
        return await self._call(lambda client: client.health(timeout=timeout, metadata=metadata))

    async def needs_token(self, timeout: float) -> bool:
        """Tells whether the servers refuse a caller without a token."""
        try:
            await self.models(timeout, None)
        except Unauthenticated:
            return True
        return False

    async def _call(self, ask: Callable[[AsyncClient], Awaitable[_Answer]]) -> _Answer:
        """Asks the servers in turn until one answers, those that seem well first."""
        self._next = (self._next + 1) % len(self._targets)
        turn = self._targets[self._next :] + self._targets[: self._next]
        turn.sort(key=lambda target: not target.well)
        for last, target in enumerate(turn, 1 - len(turn)):
            try:
                answer = await ask(target.client)
            except ELSEWHERE as error:
                if isinstance(error, ServerUnavailable | ShuttingDown):
                    target.mark(False)
                if last == 0:
                    raise
            else:
                target.mark(True)
                return answer
        raise AssertionError("there is at least one target")

    async def _watch(self) -> None:
        while True:
            await asyncio.gather(*(self._look(target) for target in self._targets))
            await asyncio.sleep(PROBE_SECONDS)

    async def _look(self, target: _Target) -> None:
        try:
            metadata = authorization(self._token)
            health = await target.client.health(timeout=PROBE_SECONDS, metadata=metadata)
            target.mark(health.state is State.READY)
        except (TransportError, ShuttingDown, DeadlineExceeded):
            target.mark(False)
        except RerankError:
            target.mark(True)  # it refuses us, so it is there
        except Exception as error:
            log.error("the probe of %s failed: %s", target.name, describe(error))


class _Target:
    """One server, and whether it seemed well when last heard of."""

    def __init__(self, name: str, client: AsyncClient) -> None:
        self.name = name
        self.client = client
        self.well = True

    def mark(self, well: bool) -> None:
        if well is not self.well:
            log.warning("rerank server %s is %s", self.name, "back" if well else "away")
        self.well = well


def authorization(token: str | None) -> dict[str, str]:
    """Makes the metadata that carries a token."""
    return {"authorization": f"Bearer {token}"} if token else {}


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise DeadlineExceeded("the deadline passed before the scores were there")
    return remaining
