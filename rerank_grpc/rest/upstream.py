"""The gRPC servers behind REST: round robin over those that answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from operator import attrgetter
from typing import Concatenate, ParamSpec

from rerank_grpc.access.tokens import SentToken
from rerank_grpc.callers import Caller
from rerank_grpc.client import AsyncClient, ServerUnavailable, UnexpectedStatus
from rerank_grpc.errors import (
    InvalidRequest,
    ModelFailed,
    ModelLoading,
    RerankError,
    ShuttingDown,
    Unauthenticated,
)
from rerank_grpc.http.errors import HttpError
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest.forms.decoded import Decoded
from rerank_grpc.rest.target import PROBE_SECONDS, Answer, Target
from rerank_grpc.tls.channel import TlsSources
from rerank_grpc.types import Health, ModelInfo, RerankRequest, RerankResponse, RerankSummary
from rerank_grpc.units import in_bytes
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire import messages

# The pause between two looks at the health of each of several servers, and the time of one.
WATCH_SECONDS = 2.0
# The requests of one call, one for each query that differs, that are under way at once.
CONCURRENCY = 8

_Given = ParamSpec("_Given")


class Upstream:
    """Calls the servers; made before its loop runs, used from that loop alone.

    An overloaded server's refusal goes to the caller at once: callers have their own
    retries, and sockets that wait here would pile up.
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        token: SentToken,
        decides: bool = False,
        tls: TlsSources | None = None,
    ) -> None:
        """Takes REST's own token; with `decides`, which models are a caller's is found out here as well."""
        self._token = token
        self._decides = decides
        # Alone, gRPC itself tries again while the server restarts; of several, the next one is asked.
        retries = 0 if len(targets) > 1 else 3
        self._targets = [Target(name, retries=retries, tls=tls) for name in targets]
        self._next = 0
        self._watcher: asyncio.Task[None] | None = None
        # By name and revision, which the reply to a rerank call tells.
        self._devices: dict[tuple[str, str], str] = {}

    async def start(self) -> None:
        if len(self._targets) > 1:
            self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        for target in self._targets:
            await target.close()

    async def rerank_all(
        self, decoded: Decoded, timeout: float, metadata: Mapping[str, str]
    ) -> list[RerankResponse]:
        """Asks a body's requests, several at a time, all within `timeout` seconds.

        The first failure ends them; an InvalidRequest names the fields of the body.
        """
        deadline = time.monotonic() + timeout
        under_way = asyncio.Semaphore(CONCURRENCY)

        async def ask(index: int, request: RerankRequest) -> RerankResponse:
            # Clients of other APIs send an instruction whether or not the model takes one.
            request = request._replace(ignore_unsupported_options=True)
            async with under_way:
                try:
                    message = messages.request_to(pb.RerankRequest, request).SerializeToString()
                    reply = await self.relay_rerank(message, deadline, metadata)
                except InvalidRequest as error:
                    raise decoded.in_own_words(error, index) from None
            return messages.response_from(pb.RerankResponse.FromString(reply))

        if len(decoded.requests) == 1:
            return [await ask(0, decoded.requests[0])]
        tasks = [asyncio.create_task(ask(*numbered)) for numbered in enumerate(decoded.requests)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def relay_rerank(self, message: bytes, deadline: float, metadata: Mapping[str, str]) -> bytes:
        """Passes on a RerankRequest as it is; returns the RerankResponse.

        `deadline` is of time.monotonic. Raises HttpError 413 for a request that no server takes.
        """
        if len(message) > LIMITS.message_bytes:
            most = in_bytes(LIMITS.message_bytes)
            text = f"the request has {len(message):,} bytes of text in UTF-8, at most {most} are allowed"
            raise HttpError(413, f"{text}: send fewer or shorter documents")
        return await self._call(Target.rerank, message, deadline, metadata)

    async def relay_question(
        self, method: str, message: bytes, timeout: float, metadata: Mapping[str, str]
    ) -> bytes:
        """Passes on a request of a method without texts; returns the reply."""
        question = partial(AsyncClient.relay, method=method, message=message)
        return await self._call(Target.ask, question, None, timeout, metadata)

    async def device(self, summary: RerankSummary, timeout: float, token: str | None) -> str:
        """Tells the device of a model that has answered, "" where that fails or would be late."""
        key = summary.model, summary.model_revision
        if timeout > 0 and not self._devices.get(key):
            with suppress(RerankError):
                models = await self.models(token, timeout)
                self._devices = {(model.name, model.revision): model.device for model in models}
        return self._devices.get(key, "")

    async def models(self, token: str | None, timeout: float = PROBE_SECONDS) -> tuple[ModelInfo, ...]:
        """Lists the models, with a caller's token."""
        return await self._call(Target.ask, AsyncClient.list_models, token, timeout)

    async def require_model(self, caller: Caller, name: str, token: str | None) -> None:
        """Raises PermissionDenied where a model is not the caller's; of a server beside REST, that one does.

        Of servers elsewhere, only their list tells which further names a model has.
        """
        if not self._decides or caller.may_call(name):
            return
        models = await self.models(token)
        named = (
            each for each in models if name in (each.name, *each.aliases) or (each.is_default and not name)
        )
        if not any(may_see(caller, each.name, each.aliases) for each in named):
            caller.require_model("")

    async def health(self, token: str | None, model: str) -> Health:
        """Asks for a model's health, with a caller's token."""
        return await self._call(Target.ask, partial(AsyncClient.health, model=model), token)

    async def own_models(self) -> tuple[ModelInfo, ...]:
        """Lists the models with REST's own token: for public routes, and for nothing else."""
        return await self._call(Target.probe, AsyncClient.list_models, self._token.value)

    async def own_health(self) -> Health:
        """Asks for the default model's health, with REST's own token."""
        return await self._call(Target.probe, AsyncClient.health, self._token.value)

    async def serving(self) -> bool:
        """Asks whether the default model can be called, which needs no token."""
        try:
            return await self._call(Target.probe, AsyncClient.serving, None)
        except UnexpectedStatus:
            return True  # it has no grpc.health.v1, and has answered

    async def needs_token(self) -> bool:
        try:
            await self._call(Target.probe, AsyncClient.list_models, None)
        except Unauthenticated:
            return True
        return False

    async def _call(
        self,
        ask: Callable[Concatenate[Target, _Given], Awaitable[Answer]],
        *given: _Given.args,
        **options: _Given.kwargs,
    ) -> Answer:
        """Asks the servers in turn until one answers, those that seem well first."""
        self._next = (self._next + 1) % len(self._targets)
        turn = self._targets[self._next :] + self._targets[: self._next]
        turn.sort(key=attrgetter("well"), reverse=True)
        for target in turn:
            try:
                return await ask(target, *given, **options)
            # Another server may answer where this one is away, or its model is.
            except (ServerUnavailable, ShuttingDown, ModelLoading, ModelFailed) as error:
                if isinstance(error, ServerUnavailable | ShuttingDown):
                    target.mark(False, error)
                    self._devices.clear()
                if target is turn[-1]:
                    raise
        raise AssertionError("there is at least one server")

    async def _watch(self) -> None:
        while True:
            await asyncio.gather(*(target.look(self._token.value, WATCH_SECONDS) for target in self._targets))
            await asyncio.sleep(WATCH_SECONDS)


def may_see(caller: Caller, name: str, aliases: Iterable[str]) -> bool:
    """Tells whether a model is a caller's, by any of the names that it has."""
    return any(map(caller.may_call, (name, *aliases)))
