"""The client for asyncio: a thin shell over :mod:`core`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from rerank_grpc.client import arguments, core, parts
from rerank_grpc.client.arguments import CallOptions, DocumentLike, RerankOptions
from rerank_grpc.client.channel import Replica
from rerank_grpc.client.errors import ServerUnavailable, TlsError, unimplemented
from rerank_grpc.client.many import CONCURRENCY, AsyncRerankResponses, Job, Progress
from rerank_grpc.errors import Cancelled
from rerank_grpc.types import Health, ModelInfo, RerankRequest, RerankResponse, ScoredDocument
from rerank_grpc.v1 import rerank_pb2 as pb


class AsyncClient(core.BaseClient["AsyncRerankStream"]):
    """Calls a rerank service from the event loop of its first call; may be made before that loop runs."""

    def _begin(self) -> None:
        # A channel of grpc.aio belongs to its loop, which may not run yet.
        self._loop: asyncio.AbstractEventLoop | None = None

    async def rerank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        model: str | None = None,
        top_n: int | None = None,
        *,
        progress: Progress | None = None,
        **options: Unpack[RerankOptions],
    ) -> RerankResponse:
        """Scores documents against a query, best first; see Client.rerank."""
        request, call = arguments.rerank_request(query, documents, model, top_n, **options)
        return await self._in_parts(request, self._attempts(**call), parts.AT_ONCE, progress)

    def rerank_many(
        self,
        jobs: Iterable[Job] | AsyncIterable[Job],
        model: str | None = None,
        top_n: int | None = None,
        *,
        concurrency: int = CONCURRENCY,
        progress: Progress | None = None,
        **options: Unpack[RerankOptions],
    ) -> AsyncRerankResponses:
        """Yields the response of each job in the order of the jobs; see Client.rerank_many."""
        batch = arguments.batch_options(options)

        async def answer(job: Job) -> RerankResponse:
            request, call = arguments.rerank_request(*arguments.pair(job), model, top_n, **batch)
            return await self._in_parts(request, self._attempts(**call, patient=True), at_once=1)

        return AsyncRerankResponses(jobs, answer, concurrency, progress)

    async def send(self, request: RerankRequest, **call: Unpack[CallOptions]) -> RerankResponse:
        """Scores the documents of a request; see Client.send."""
        return await self._call(core.rerank(request), self._attempts(**call))

    async def relay(self, method: str, message: bytes, **call: Unpack[CallOptions]) -> bytes:
        """Passes a serialized request on as it is; returns the serialized reply."""
        return await self._call(core.relay(method, message), self._attempts(**call))

    def relay_stream(self, message: bytes, **call: Unpack[CallOptions]) -> AsyncGenerator[bytes, None]:
        """Passes a serialized StreamRerankRequest on as it is; yields the messages, serialized too."""
        return self._stream(lambda stub: stub.StreamRerankBytes, message, self._attempts(**call))

    async def list_models(self, **call: Unpack[CallOptions]) -> tuple[ModelInfo, ...]:
        """Lists the configured models; the default model is first."""
        return await self._call(core.list_models(), self._attempts(**call))

    async def health(self, model: str | None = None, **call: Unpack[CallOptions]) -> Health:
        """Tells whether a call for a model would be answered, and how full its queue is."""
        return await self._call(core.health(model), self._attempts(**call))

    async def serving(self, service: str = "", **call: Unpack[CallOptions]) -> bool:
        """Asks grpc.health.v1, which needs no token; see Client.serving."""
        return await self._call(core.serving(service), self._attempts(**call))

    async def wait_until_ready(self, timeout: float | None = None, *, model: str | None = None) -> Health:
        """Waits until a server is there and a call would be answered; see Client.wait_until_ready."""
        question = core.health(model)
        attempts = self._attempts(timeout=timeout)
        patience = core.READY_LOOK_SECONDS
        while remaining := attempts.remaining:
            health = None
            try:
                once = self._attempts(timeout=min(remaining, patience))
                health = await self._call(question, once, wait_for_ready=not self._replicas.several)
                if core.is_ready(health):
                    return health
            except TlsError:
                raise
            except core.NOT_YET:
                pass
            silent, look = health is None and patience < remaining, self._replicas.first.inquiry.look
            if silent and (problem := await asyncio.to_thread(look, attempts.remaining)):
                raise problem
            patience = math.inf
            await asyncio.sleep(min(core.READY_POLL_SECONDS, attempts.remaining))
        raise self._not_ready()

    async def close(self) -> None:
        """Ends the client; calls in progress raise Cancelled."""
        self._closed = True
        for replica in self._replicas.all:
            if replica.channel is not None:
                await replica.channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(
        self, rpc: core.Rpc[core.Reply], attempts: core.Attempts, *, wait_for_ready: bool = False
    ) -> core.Reply:
        while True:
            self._check_open()
            self._open()
            with self._replicas.turn() as replica:
                try:
                    with self._cancelled_by_close():
                        reply = await getattr(replica.stub, rpc.method)(
                            rpc.message,
                            timeout=attempts.remaining,
                            metadata=attempts.metadata,
                            wait_for_ready=wait_for_ready,
                        )
                except grpc.RpcError as error:
                    method = rpc.method.removesuffix("Bytes")  # of a call that is relayed
                    delay = await self._delay_after(error, attempts, replica, method)
                else:
                    self._replicas.answered(replica)
                    return rpc.read(reply)
            await asyncio.sleep(delay)

    async def _in_parts(
        self, request: RerankRequest, attempts: core.Attempts, at_once: int, progress: Progress | None = None
    ) -> RerankResponse:
        """Answers a request of any size, so many parts of it at once."""
        several = parts.parts_of(request)
        if len(several) == 1:
            response = await self._call(core.rerank(request), attempts)
            parts.PartsTally(request, progress).add(request)
            return response
        for _ in range(1 + parts.ASKED_AGAIN):
            room, scored = asyncio.Semaphore(at_once), parts.PartsTally(request, progress)
            replies = await self._at_once(several, attempts, room, scored)
            if parts.of_one_revision(replies):
                return parts.merged(request, several, replies)
        raise parts.changed(replies)

    async def _at_once(
        self,
        several: list[parts.RequestPart],
        attempts: core.Attempts,
        room: asyncio.Semaphore,
        scored: parts.PartsTally,
    ) -> list[RerankResponse]:
        """Answers parts, a few at once; the first error ends the others."""
        asked = [asyncio.create_task(self._part(part, attempts, room, scored)) for part in several]
        try:
            over, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_EXCEPTION)
            if failed := [task for task in asked if task in over and task.exception()]:
                failed[0].result()
            return [task.result() for task in asked]
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _part(
        self,
        part: parts.RequestPart,
        attempts: core.Attempts,
        room: asyncio.Semaphore,
        scored: parts.PartsTally,
    ) -> RerankResponse:
        with parts.named(part):
            async with room:
                reply = await self._call(core.rerank(part.request), attempts.of_a_part())
        scored.add(part.request)
        return reply

    def _results(self, message: pb.StreamRerankRequest, attempts: core.Attempts) -> AsyncRerankStream:
        return AsyncRerankStream(self._stream(lambda stub: stub.StreamRerank, message, attempts))

    async def _stream(
        self,
        method: Callable[[Any], Any],
        message: pb.StreamRerankRequest | bytes,
        attempts: core.Attempts,
    ) -> AsyncGenerator[Any, None]:
        """Yields the messages of a stream; `method` picks the stub's."""
        while True:
            self._check_open()
            self._open()
            with self._replicas.turn() as replica:
                call = method(replica.stub)(message, timeout=attempts.remaining, metadata=attempts.metadata)
                try:
                    with self._cancelled_by_close():
                        async for part in call:
                            attempts.commit()
                            yield part
                    self._replicas.answered(replica)
                    return
                except grpc.RpcError as error:
                    delay = await self._delay_after(error, attempts, replica, "StreamRerank")
                finally:
                    # Ends a call that the caller has left; one that is over stays as it is.
                    call.cancel()
            await asyncio.sleep(delay)

    async def _delay_after(
        self, error: grpc.RpcError, attempts: core.Attempts, replica: Replica, method: str
    ) -> float:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            code = error.code() if method == "Rerank" else await self._code_of_rerank(replica, attempts)
            raise unimplemented(replica.target, method, error.details(), code) from error
        try:
            return attempts.delay_after(error, replica)
        except ServerUnavailable as unavailable:
            if attempts.committed:
                raise
            inquiry, remaining = replica.inquiry, attempts.remaining
            if inquiry.needs_time(unavailable):
                raise await asyncio.to_thread(inquiry.explain, unavailable, remaining) from error
            raise inquiry.explain(unavailable, remaining) from error

    async def _code_of_rerank(self, replica: Replica, attempts: core.Attempts) -> grpc.StatusCode | None:
        """Asks for nothing to be reranked, which tells whether the service is there at all."""
        try:
            await replica.stub.Rerank(core.NOTHING, timeout=attempts.looking, metadata=attempts.metadata)
        except grpc.RpcError as error:
            return error.code()
        return None

    def _open(self) -> None:
        """Opens the channels at the first call."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            for replica in self._replicas.all:
                replica.open(grpc.aio)
        if loop is not self._loop:
            raise RuntimeError("the client belongs to another event loop: make one for each")

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
