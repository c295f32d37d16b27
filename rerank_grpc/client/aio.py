"""The client for asyncio: a thin shell over :mod:`core`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from rerank_grpc.client import arguments, core
from rerank_grpc.client.arguments import CallOptions, DocumentLike, RerankOptions
from rerank_grpc.client.errors import ServerUnavailable
from rerank_grpc.errors import Cancelled
from rerank_grpc.types import Health, ModelInfo, RerankRequest, RerankResponse, ScoredDocument
from rerank_grpc.v1 import rerank_pb2 as pb


class AsyncClient(core.BaseClient["AsyncRerankStream"]):
    """Calls a rerank service from the event loop of its first call; may be made before that loop runs."""

    def _begin(self) -> None:
        # A channel of grpc.aio belongs to its loop, which may not run yet.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None

    async def rerank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        model: str | None = None,
        top_n: int | None = None,
        **options: Unpack[RerankOptions],
    ) -> RerankResponse:
        """Scores documents against a query, best first; see Client.rerank."""
        request, call = arguments.rerank_request(query, documents, model, top_n, **options)
        return await self.send(request, **call)

    async def send(self, request: RerankRequest, **call: Unpack[CallOptions]) -> RerankResponse:
        """Scores the documents of a request; see Client.send."""
        return await self._call(core.rerank(request), **call)

    async def relay(self, method: str, message: bytes, **call: Unpack[CallOptions]) -> bytes:
        """Passes a serialized request on as it is; returns the serialized reply."""
        return await self._call(core.relay(method, message), **call)

    async def list_models(self, **call: Unpack[CallOptions]) -> tuple[ModelInfo, ...]:
        """Lists the configured models; the default model is first."""
        return await self._call(core.list_models(), **call)

    async def health(self, model: str | None = None, **call: Unpack[CallOptions]) -> Health:
        """Tells whether a call for a model would be answered, and how full its queue is."""
        return await self._call(core.health(model), **call)

    async def serving(self, service: str = "", **call: Unpack[CallOptions]) -> bool:
        """Asks grpc.health.v1, which needs no token; see Client.serving."""
        return await self._call(core.serving(service), **call)

    async def wait_until_ready(self, timeout: float | None = None, *, model: str | None = None) -> Health:
        """Waits until a server is there and a call would be answered; see Client.wait_until_ready."""
        question = core.health(model)
        attempts = self._attempts(timeout=timeout)
        patience = core.READY_LOOK_SECONDS
        while remaining := attempts.remaining:
            health = None
            with suppress(*core.NOT_YET):
                health = await self._call(question, timeout=min(remaining, patience), wait_for_ready=True)
                if core.is_ready(health):
                    return health
            silent, look = health is None and patience < remaining, self._inquiry.look
            if silent and (problem := await asyncio.to_thread(look, attempts.remaining)):
                raise problem
            patience = math.inf
            await asyncio.sleep(min(core.READY_POLL_SECONDS, attempts.remaining))
        raise self._not_ready()

    async def close(self) -> None:
        """Ends the client; calls in progress raise Cancelled."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(
        self, rpc: core.Rpc[core.Reply], *, wait_for_ready: bool = False, **call: Unpack[CallOptions]
    ) -> core.Reply:
        attempts = self._attempts(**call)
        while True:
            method = getattr(self._open(), rpc.method)
            try:
                with self._cancelled_by_close():
                    reply = await method(
                        rpc.message,
                        timeout=attempts.remaining,
                        metadata=attempts.metadata,
                        wait_for_ready=wait_for_ready,
                    )
            except grpc.RpcError as error:
                delay = await self._delay_after(error, attempts)
            else:
                return rpc.read(reply)
            await asyncio.sleep(delay)

    def _results(self, message: pb.StreamRerankRequest, attempts: core.Attempts) -> AsyncRerankStream:
        return AsyncRerankStream(self._stream(message, attempts))

    async def _stream(
        self, message: pb.StreamRerankRequest, attempts: core.Attempts
    ) -> AsyncGenerator[pb.StreamRerankResponse, None]:
        while True:
            call = self._open().StreamRerank(message, timeout=attempts.remaining, metadata=attempts.metadata)
            try:
                with self._cancelled_by_close():
                    async for part in call:
                        attempts.commit()
                        yield part
                return
            except grpc.RpcError as error:
                delay = await self._delay_after(error, attempts)
            finally:
                # Ends a call that the caller has left; one that is over stays as it is.
                call.cancel()
            await asyncio.sleep(delay)

    async def _delay_after(self, error: grpc.RpcError, attempts: core.Attempts) -> float:
        try:
            return attempts.delay_after(error)
        except ServerUnavailable as unavailable:
            if attempts.committed:
                raise
            explain, remaining = self._inquiry.explain, attempts.remaining
            if self._inquiry.needs_time(unavailable):
                raise await asyncio.to_thread(explain, unavailable, remaining) from error
            raise explain(unavailable, remaining) from error

    def _open(self) -> Any:
        """Returns the stub, of a channel that the first call opens."""
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._stub is None:
            self._loop, self._channel = loop, self._connect(grpc.aio)
            self._stub = core.stub_of(self._channel)
        if loop is not self._loop:
            raise RuntimeError("the client belongs to another event loop: make one for each")
        return self._stub

    @contextmanager
    def _cancelled_by_close(self) -> Iterator[None]:
        """Raises Cancelled for a call that `close` has ended: CancelledError would end its task as well."""
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise Cancelled("the client was closed") from None
            raise


class AsyncRerankStream(core.Stream, AsyncIterator[ScoredDocument]):
    """The results of a call as they are scored, to be read once; `async with` or `aclose` ends it early."""

    def __init__(self, incoming: AsyncGenerator[pb.StreamRerankResponse, None]) -> None:
        super().__init__()
        self._results = self._read_all(incoming)

    async def aclose(self) -> None:
        """Cancels the call if it is not over."""
        await self._results.aclose()

    async def _read_all(
        self, incoming: AsyncGenerator[pb.StreamRerankResponse, None]
    ) -> AsyncGenerator[ScoredDocument, None]:
        async with aclosing(incoming):
            async for message in incoming:
                for result in self._read(message):
                    yield result
        self._finish()

    async def __anext__(self) -> ScoredDocument:
        return await anext(self._results)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
