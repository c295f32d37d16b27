"""The gRPC servers behind REST: round robin over those that answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from operator import attrgetter
from typing import Any, Concatenate, ParamSpec

from rerank_grpc.access.tokens import SentToken
from rerank_grpc.callers import ANYONE, Caller
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
from rerank_grpc.limits import LIMITS, check_request
from rerank_grpc.rest.forms.decoded import Decoded
from rerank_grpc.rest.target import NO_METADATA, PROBE_SECONDS, Answer, Target
from rerank_grpc.telemetry.ids import CHARGE_KEY
from rerank_grpc.tls.channel import TlsSources
from rerank_grpc.tls.followed import FollowedSources
from rerank_grpc.types import Health, ModelInfo, RerankRequest, RerankResponse, RerankSummary
from rerank_grpc.units import in_bytes
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire import messages

# The pause between two looks at the health of each of several servers, and the time of one.
WATCH_SECONDS = 2.0
# The requests of one call, one for each query that differs, that are under way at once.
CONCURRENCY = 8

# Another server may answer where this one is away, or its model is.
_ELSEWHERE = (ServerUnavailable, ShuttingDown, ModelLoading, ModelFailed)

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
        alone: bool = False,
        tls: TlsSources | None = None,
    ) -> None:
        """Takes REST's own token.

        REST that is `alone`, in a process without a gRPC server, finds out itself which models are a
        caller's, and has servers charge each request of a body: they would not believe it a sum.
        """
        self._token = token
        self._tls = FollowedSources(tls) if tls else None
        self._alone = alone
        # Alone, gRPC itself tries again while the server restarts; of several, the next one is asked.
        retries = 0 if len(targets) > 1 else 3
        self._targets = [Target(name, retries=retries, tls=tls) for name in targets]
        self._next = 0
        self._watcher: asyncio.Task[None] | None = None
        # By name and revision, which the reply to a rerank call tells.
        self._devices: dict[tuple[str, str], str] = {}

    async def start(self) -> None:
        if self._tls is not None:
            loop = asyncio.get_running_loop()
            self._tls.watch(lambda tls: loop.call_soon_threadsafe(self._renew, tls))
        if len(self._targets) > 1:
            self._watcher = asyncio.create_task(self._watch())

    def _renew(self, tls: TlsSources) -> None:
        for target in self._targets:
            target.renew(tls)

    async def close(self) -> None:
        if self._tls is not None:
            await asyncio.to_thread(self._tls.close)
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        for target in self._targets:
            await target.close()

    async def rerank_all(
        self, decoded: Decoded, timeout: float, metadata: Mapping[str, str], caller: Caller = ANYONE
    ) -> list[RerankResponse]:
        """Asks a body's requests, several at a time, all within `timeout` seconds.

        The first failure ends them; an InvalidRequest names the fields of the body. A caller with a rate is
        charged once for all of them, by the first, which goes alone: a body that is refused costs nothing.
        """
        deadline = time.monotonic() + timeout
        under_way = asyncio.Semaphore(CONCURRENCY)

        async def ask(index: int, charge: Mapping[str, str] = NO_METADATA) -> RerankResponse:
            async with under_way:
                try:
                    message = _message_of(decoded.requests[index])
                    reply = await self.relay_rerank(message, deadline, {**metadata, **charge})
                except InvalidRequest as error:
                    raise decoded.in_own_words(error, index) from None
            return messages.response_from(pb.RerankResponse.FromString(reply))

        indices = range(len(decoded.requests))
        if len(indices) == 1:
            return [await ask(0)]
        if self._alone or caller.rate is None:
            return await _gathered(map(ask, indices))
        for index in indices:
            _check(decoded, index)
        documents = sum([len(request.documents) for request in decoded.requests])
        first = await ask(0, {CHARGE_KEY: str(documents)})
        return [first, *await _gathered(ask(index, {CHARGE_KEY: "0"}) for index in indices[1:])]

    async def relay_rerank(self, message: bytes, deadline: float, metadata: Mapping[str, str]) -> bytes:
        """Passes on a RerankRequest as it is; returns the RerankResponse.

        `deadline` is of time.monotonic. Raises HttpError 413 for a request that no server takes.
        """
        _check_size(message)
        return await self._call(Target.rerank, message, deadline, metadata)

    async def relay_stream(
        self, message: bytes, deadline: float, metadata: Mapping[str, str]
    ) -> AsyncGenerator[bytes, None]:
        """Passes on a StreamRerankRequest as `relay_rerank` does; yields the StreamRerankResponses.

        Another server is asked only as long as no message has come of one.
        """
        _check_size(message)
        turn, begun = self._turn(), False
        for target in turn:
            try:
                async with aclosing(target.stream(message, deadline, metadata)) as parts:
                    async for part in parts:
                        begun = True
                        yield part
                return
            except _ELSEWHERE as error:
                self._note_away(target, error)
                if begun or target is turn[-1]:
                    raise

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
        if not self._alone or caller.may_call(name):
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
        turn = self._turn()
        for target in turn:
            try:
                return await ask(target, *given, **options)
            except _ELSEWHERE as error:
                self._note_away(target, error)
                if target is turn[-1]:
                    raise
        raise AssertionError("there is at least one server")

    def _turn(self) -> list[Target]:
        """Puts the servers in the order in which a call asks them: round, those that seem well first."""
        self._next = (self._next + 1) % len(self._targets)
        turn = self._targets[self._next :] + self._targets[: self._next]
        return sorted(turn, key=attrgetter("well"), reverse=True)

    def _note_away(self, target: Target, error: RerankError) -> None:
        if isinstance(error, ServerUnavailable | ShuttingDown):
            target.mark(False, error)
            self._devices.clear()

    async def _watch(self) -> None:
        while True:
            await asyncio.gather(*(target.look(self._token.value, WATCH_SECONDS) for target in self._targets))
            await asyncio.sleep(WATCH_SECONDS)


def may_see(caller: Caller, name: str, aliases: Iterable[str]) -> bool:
    """Tells whether a model is a caller's, by any of the names that it has."""
    return any(map(caller.may_call, (name, *aliases)))


def _message_of(request: RerankRequest) -> bytes:
    # Clients of other APIs send an instruction whether or not the model takes one.
    request = request._replace(ignore_unsupported_options=True)
    return messages.request_to(pb.RerankRequest, request).SerializeToString()


def _check_size(message: bytes) -> None:
    if len(message) > LIMITS.message_bytes:
        most = in_bytes(LIMITS.message_bytes)
        text = f"the request has {len(message):,} bytes of text in UTF-8, at most {most} are allowed"
        raise HttpError(413, f"{text}: send fewer or shorter documents")


def _check(decoded: Decoded, index: int) -> None:
    """Refuses what the server would refuse of one request, once the first of its body had been charged."""
    try:
        check_request(decoded.requests[index])
        _check_size(_message_of(decoded.requests[index]))
    except InvalidRequest as error:
        raise decoded.in_own_words(error, index) from None


async def _gathered(asked: Iterable[Coroutine[Any, Any, RerankResponse]]) -> list[RerankResponse]:
    """Awaits all; the first failure ends them."""
    tasks = [asyncio.create_task(each) for each in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
