"""The client for asyncio: a thin shell over :mod:`core`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from rerank_grpc.client import arguments, core
from rerank_grpc.client.arguments import DocumentLike, RerankOptions
from rerank_grpc.client.exceptions import ServerUnavailable
from rerank_grpc.errors import Cancelled, DeadlineExceeded, ShuttingDown
from rerank_grpc.types import (
    Health,
    ModelInfo,
    RerankRequest,
    RerankResponse,
    RerankSummary,
    ScoredDocument,
)
from rerank_grpc.v1 import rerank_pb2, rerank_pb2_grpc
from rerank_grpc.wire import messages


class AsyncClient:
    """Calls a rerank service from one event loop: that of its first call.

    Takes the arguments of :class:`rerank_grpc.client.Client`; may be made
    before a loop runs.
    """

    def __init__(
        self,
        target: str = core.DEFAULT_TARGET,
        *,
        token: str | None = None,
        timeout: float = core.DEFAULT_TIMEOUT_SECONDS,
        retries: int = core.DEFAULT_RETRIES,
        root_certificates: bytes | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[core.Option] = (),
    ) -> None:
        self._connection = core.Connection.of(
            target,
            token=token,
            timeout=timeout,
            retries=retries,
            root_certificates=root_certificates,
            credentials=credentials,
            options=options,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._closed = False

    async def rerank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        model: str | None = None,
        top_n: int | None = None,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        **options: Unpack[RerankOptions],
    ) -> RerankResponse:
        """Scores documents against a query, best first; see Client.rerank."""
        request = arguments.rerank_request(query, documents, model, top_n, **options)
        return await self.send(request, timeout=timeout, metadata=metadata)

    async def send(
        self,
        request: RerankRequest,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> RerankResponse:
        """Scores the documents of a request; see Client.send."""
        message = messages.request_to(rerank_pb2.RerankRequest, request)
        return messages.response_from(await self._call("Rerank", message, timeout, metadata))

    def stream_rerank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        model: str | None = None,
        top_n: int | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> AsyncRerankStream:
        """Scores documents and yields each result as it is scored; see Client.stream_rerank."""
        request = arguments.rerank_request(query, documents, model, top_n, **options)
        return self.stream(request, timeout=timeout)

    def stream(self, request: RerankRequest, *, timeout: float | None = None) -> AsyncRerankStream:
        """Streams the results of a request; see Client.stream."""
        message = messages.request_to(rerank_pb2.StreamRerankRequest, request)
        return AsyncRerankStream(self._stream(message, self._connection.attempts(timeout, time.monotonic())))

    async def list_models(
        self, *, timeout: float | None = None, metadata: Mapping[str, str] | None = None
    ) -> tuple[ModelInfo, ...]:
        """Lists the configured models; the default model is first."""
        reply = await self._call("ListModels", rerank_pb2.ListModelsRequest(), timeout, metadata)
        return tuple(messages.model_from(model) for model in reply.models)

    async def health(
        self,
        model: str | None = None,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Health:
        """Tells whether a call for a model would be answered, and how full its queue is."""
        return messages.health_from(
            await self._call(
                "Health", messages.health_request(arguments.text("model", model or "")), timeout, metadata
            )
        )

    async def serving(
        self,
        service: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> bool:
        """Tells what grpc.health.v1 says, which needs no token; see Client.serving."""
        request = messages.check_request(arguments.text("service", service))
        return messages.is_serving(await self._call("Check", request, timeout, metadata))

    async def wait_until_ready(self, timeout: float | None = None, *, model: str | None = None) -> Health:
        """Waits until a server is there and a call would be answered; see Client.wait_until_ready."""
        attempts = self._connection.attempts(timeout, time.monotonic())
        request = messages.health_request(arguments.text("model", model or ""))
        while remaining := attempts.remaining(time.monotonic()):
            try:
                reply = await self._call("Health", request, remaining, wait_for_ready=True)
                if core.is_ready(health := messages.health_from(reply)):
                    return health
            except (ServerUnavailable, ShuttingDown):
                pass
            await asyncio.sleep(min(core.READY_POLL_SECONDS, attempts.remaining(time.monotonic())))
        raise DeadlineExceeded("the model was not ready in time")

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
        self,
        method: str,
        request: object,
        timeout: float | None,
        metadata: Mapping[str, str] | None = None,
        wait_for_ready: bool = False,
    ) -> Any:
        attempts = self._connection.attempts(timeout, time.monotonic())
        while True:
            try:
                with self._cancelled_by_close():
                    return await getattr(self._open(), method)(
                        request,
                        timeout=attempts.remaining(time.monotonic()),
                        metadata=self._connection.metadata_with(metadata),
                        wait_for_ready=wait_for_ready,
                    )
            except grpc.RpcError as error:
                delay = attempts.delay_after(error, time.monotonic())
            await asyncio.sleep(delay)

    async def _stream(
        self, request: rerank_pb2.StreamRerankRequest, attempts: core.Attempts
    ) -> AsyncGenerator[rerank_pb2.StreamRerankResponse, None]:
        while True:
            call = self._open().StreamRerank(
                request,
                timeout=attempts.remaining(time.monotonic()),
                metadata=self._connection.metadata,
            )
            try:
                with self._cancelled_by_close():
                    async for message in call:
                        attempts.commit()
                        yield message
                return
            except grpc.RpcError as error:
                delay = attempts.delay_after(error, time.monotonic())
            finally:
                # Ends a call that the caller has left; one that is over stays as it is.
                call.cancel()
            await asyncio.sleep(delay)

    def _open(self) -> Any:
        """Makes the stub once a loop runs: a channel of grpc.aio belongs to its loop."""
        if self._closed:
            raise RuntimeError("the client is closed")
        loop = asyncio.get_running_loop()
        if self._stub is None:
            connection = self._connection
            self._loop = loop
            self._channel = (
                grpc.aio.insecure_channel(connection.target, connection.options)
                if connection.credentials is None
                else grpc.aio.secure_channel(connection.target, connection.credentials, connection.options)
            )
            self._stub = rerank_pb2_grpc.RerankServiceStub(self._channel)
            self._stub.Check = self._channel.unary_unary(
                messages.CHECK_METHOD,
                request_serializer=messages.CheckRequest.SerializeToString,
                response_deserializer=messages.CheckResponse.FromString,
            )
        if loop is not self._loop:
            raise RuntimeError("the client belongs to another event loop: make one for each")
        return self._stub

    @contextmanager
    def _cancelled_by_close(self) -> Iterator[None]:
        """Tells apart a call that `close` has ended from a task that somebody cancelled.

        Both arrive as CancelledError, which only the second may stay: it would
        end a task that nobody cancelled.
        """
        try:
            yield
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise Cancelled("the client was closed") from None
            raise


class AsyncRerankStream:
    """The results of one stream_rerank call, in the order of scoring.

    Iterate it once; leave early through `async with` or `aclose`.
    """

    def __init__(self, incoming: AsyncGenerator[rerank_pb2.StreamRerankResponse, None]) -> None:
        self._reader = core.StreamReader()
        self._results = self._read(incoming)

    @property
    def summary(self) -> RerankSummary:
        """What is said once about the call; there when the last result has been read."""
        return self._reader.summary

    async def aclose(self) -> None:
        """Cancels the call if it is not over."""
        await self._results.aclose()

    async def _read(
        self, incoming: AsyncGenerator[rerank_pb2.StreamRerankResponse, None]
    ) -> AsyncGenerator[ScoredDocument, None]:
        async with aclosing(incoming):
            async for message in incoming:
                for result in self._reader.feed(message):
                    yield result
        self._reader.finish()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ScoredDocument:
        return await anext(self._results)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
