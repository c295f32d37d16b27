"""The gRPC servers behind the shim: round robin over those that answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

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
    TransportError,
    Unauthenticated,
    UnexpectedStatus,
    UnsupportedOption,
)
from rerank_grpc.errors import DeadlineExceeded, describe
from rerank_grpc.rest.target import Target
from rerank_grpc.types import RerankRequest, RerankSummary

log = logging.getLogger(__name__)

# How often a server is asked for its health where there are several, and how long it may take.
PROBE_SECONDS = 2.0
# How many requests of one call, one for each query that differs, are under way at once.
CONCURRENCY = 8
# What is worth asking another server for: this one is away, or its model is.
ELSEWHERE = (ServerUnavailable, ShuttingDown, ModelLoading, ModelFailed)
# Of how many names of models it is remembered that the model takes no instruction.
MAX_REMEMBERED = 1_000

_Answer = TypeVar("_Answer")


class Upstream:
    """Calls the servers; made before its loop runs, used from that loop alone.

    An overloaded server's refusal goes to the caller at once: the callers of
    the shim have their own retries, and sockets that wait here would pile up.
    """

    def __init__(self, targets: Sequence[str], *, token: str | None = None) -> None:
        self._token = token
        # Alone, gRPC itself tries again while the server restarts; of several, the next one is asked.
        retries = 0 if len(targets) > 1 else 3
        self._targets = [Target(name, retries=retries) for name in targets]
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
            await target.close()

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

        async def ask(target: Target, instruction: str) -> RerankResponse:
            with target.calling() as client:
                response = await client.rerank(
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
            target.mark(True)
            return response

        async def ask_fittingly(target: Target) -> RerankResponse:
            if request.instruction and request.model in target.takes_none:
                response = await ask(target, "")
                if target.takes_none.get(request.model) == _served(response.summary):
                    return response
                # The name stands for another model by now.
                target.takes_none.pop(request.model, None)
            try:
                return await ask(target, request.instruction)
            except UnsupportedOption as error:
                refused = {violation.field for violation in error.violations}
                if not request.instruction or "instruction" not in refused:
                    raise
            response = await ask(target, "")
            if len(target.takes_none) < MAX_REMEMBERED:
                target.takes_none[request.model] = _served(response.summary)
            return response

        return await self._call(ask_fittingly)

    async def models(self, timeout: float, token: str | None) -> tuple[ModelInfo, ...]:
        """Lists the models, with a caller's token."""
        metadata = authorization(token)
        return await self._call(lambda target: target.probes.list_models(timeout=timeout, metadata=metadata))

    async def own_models(self, timeout: float) -> tuple[ModelInfo, ...]:
        """Lists the models with the shim's own token: for public routes, and for nothing else."""
        return await self._list_models(timeout, self._token)

    async def health(self, timeout: float, token: str | None, model: str = "") -> Health:
        """Asks for a model's health, with a caller's token; "" is the default model."""
        metadata = authorization(token)
        return await self._call(lambda t: t.probes.health(model, timeout=timeout, metadata=metadata))

    async def own_health(self, timeout: float) -> Health:
        """Asks for the default model's health, with the shim's own token."""
        metadata = authorization(self._token)
        return await self._ask_once(
            "health", lambda probes: probes.health(timeout=timeout, metadata=metadata)
        )

    async def serving(self, timeout: float) -> bool:
        """Asks whether the default model can be called, which needs no token."""
        return await self._ask_once("serving", lambda probes: probes.serving(timeout=timeout))

    async def needs_token(self, timeout: float) -> bool:
        """Tells whether the servers refuse a caller without a token."""
        try:
            await self._list_models(timeout, None)
        except Unauthenticated:
            return True
        return False

    async def _list_models(self, timeout: float, token: str | None) -> tuple[ModelInfo, ...]:
        """Lists the models for a public route, with the shim's own token or with none."""
        question = "models" if token == self._token else "models without a token"
        metadata = authorization(token)
        return await self._ask_once(question, lambda p: p.list_models(timeout=timeout, metadata=metadata))

    async def _ask_once(
        self, question: str, ask: Callable[[AsyncClient], Coroutine[Any, Any, _Answer]]
    ) -> _Answer:
        """Asks for a public route, one call at a time: see Target.probe."""
        return await self._call(lambda target: target.probe(question, ask))

    async def _call(self, ask: Callable[[Target], Awaitable[_Answer]]) -> _Answer:
        """Asks the servers in turn until one answers, those that seem well first."""
        self._next = (self._next + 1) % len(self._targets)
        turn = self._targets[self._next :] + self._targets[: self._next]
        turn.sort(key=lambda target: not target.well)
        for last, target in enumerate(turn, 1 - len(turn)):
            try:
                return await ask(target)
            except ELSEWHERE as error:
                if isinstance(error, ServerUnavailable | ShuttingDown):
                    target.mark(False)
                if last == 0:
                    raise
        raise AssertionError("there is at least one target")

    async def _watch(self) -> None:
        while True:
            await asyncio.gather(*(self._look(target) for target in self._targets))
            await asyncio.sleep(PROBE_SECONDS)

    async def _look(self, target: Target) -> None:
        try:
            target.mark(await self._is_well(target))
        except (TransportError, ShuttingDown, DeadlineExceeded):
            target.mark(False)
        except RerankError:
            target.mark(True)  # it refuses us, so it is there
        except Exception as error:
            log.error("the probe of %s failed: %s", target.name, describe(error))

    async def _is_well(self, target: Target) -> bool:
        metadata = authorization(self._token)
        try:
            health = await target.probes.health(timeout=PROBE_SECONDS, metadata=metadata)
        except Unauthenticated:
            # What orchestrators ask needs no token.
            with suppress(UnexpectedStatus):
                return await target.probes.serving(timeout=PROBE_SECONDS)
            raise
        return health.serving


def _served(summary: RerankSummary) -> tuple[str, str]:
    return summary.model, summary.model_revision


def authorization(token: str | None) -> dict[str, str]:
    """Makes the metadata that carries a token."""
    return {"authorization": f"Bearer {token}"} if token else {}


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise DeadlineExceeded("the deadline passed before the scores were there")
    return remaining
