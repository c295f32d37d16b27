"""The client for threads: a thin shell over :mod:`core`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, Self, Unpack

import grpc

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


class Client:
    """Calls a rerank service; threads may share one.

    `timeout` is the deadline of a call in seconds, all its attempts together.
    `retries` is how many further attempts a call may take, 0 to 4. With
    `root_certificates` (PEM) or `credentials` the channel is TLS. `options` are
    gRPC channel arguments and win over the client's own.
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
        self._connection = connection = core.Connection.of(
            target,
            token=token,
            timeout=timeout,
            retries=retries,
            root_certificates=root_certificates,
            credentials=credentials,
            options=options,
        )
        self._channel = (
            grpc.insecure_channel(target, connection.options)
            if connection.credentials is None
            else grpc.secure_channel(target, connection.credentials, connection.options)
        )
        self._stub = rerank_pb2_grpc.RerankServiceStub(self._channel)
        self._check = self._channel.unary_unary(
            messages.CHECK_METHOD,
            request_serializer=messages.CheckRequest.SerializeToString,
            response_deserializer=messages.CheckResponse.FromString,
        )
        self._closed = False

    def rerank(
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
        """Scores documents against a query, best first.

        A document is a text, a Document or a mapping with "text" and maybe
        "id". Options: return_documents, min_relevance_score, instruction,
        max_tokens_per_document, truncation ("end", "start", "none"),
        max_chunks_per_document, priority ("interactive", "batch"),
        ignore_unsupported_options.
        `metadata` goes with this call and wins over the client's own.
        """
        request = arguments.rerank_request(query, documents, model, top_n, **options)
        return self.send(request, timeout=timeout, metadata=metadata)

    def send(
        self,
        request: RerankRequest,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> RerankResponse:
        """Scores the documents of a request, best first: `rerank` without its checks of types."""
        message = messages.request_to(rerank_pb2.RerankRequest, request)
        return messages.response_from(self._call(self._stub.Rerank, message, timeout, metadata))

    def stream_rerank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        model: str | None = None,
        top_n: int | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> RerankStream:
        """Scores documents and yields each result as it is scored, in that order.

        Takes the options of `rerank`. The deadline counts from here; the call is
        sent when the first result is asked for.
        """
        request = arguments.rerank_request(query, documents, model, top_n, **options)
        return self.stream(request, timeout=timeout)

    def stream(self, request: RerankRequest, *, timeout: float | None = None) -> RerankStream:
        """Streams the results of a request: `stream_rerank` without its checks of types."""
        message = messages.request_to(rerank_pb2.StreamRerankRequest, request)
        return RerankStream(self._stream(message, self._connection.attempts(timeout, time.monotonic())))

    def list_models(
        self, *, timeout: float | None = None, metadata: Mapping[str, str] | None = None
    ) -> tuple[ModelInfo, ...]:
        """Lists the configured models; the default model is first."""
        reply = self._call(self._stub.ListModels, rerank_pb2.ListModelsRequest(), timeout, metadata)
        return tuple(messages.model_from(model) for model in reply.models)

    def health(
        self,
        model: str | None = None,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Health:
        """Tells whether a call for a model would be answered, and how full its queue is."""
        return messages.health_from(
            self._call(
                self._stub.Health,
                messages.health_request(arguments.text("model", model or "")),
                timeout,
                metadata,
            )
        )

    def serving(
        self,
        service: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> bool:
        """Tells what grpc.health.v1 says, which needs no token: whether the default model can be called.

        `service` names one of the server's services; one that it does not have
        raises UnexpectedStatus.
        """
        return messages.is_serving(
            self._call(
                self._check, messages.check_request(arguments.text("service", service)), timeout, metadata
            )
        )

    def wait_until_ready(self, timeout: float | None = None, *, model: str | None = None) -> Health:
        """Waits until a server is there and a call for the model would be answered.

        Raises DeadlineExceeded when the time is over, ModelFailed when waiting
        does not help.
        """
        attempts = self._connection.attempts(timeout, time.monotonic())
        request = messages.health_request(arguments.text("model", model or ""))
        while remaining := attempts.remaining(time.monotonic()):
            try:
                reply = self._call(self._stub.Health, request, remaining, wait_for_ready=True)
                if core.is_ready(health := messages.health_from(reply)):
                    return health
            except (ServerUnavailable, ShuttingDown):
                pass
            time.sleep(min(core.READY_POLL_SECONDS, attempts.remaining(time.monotonic())))
        raise DeadlineExceeded("the model was not ready in time")

    def close(self) -> None:
        """Ends the client; calls in progress raise Cancelled."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        method: Callable[..., Any],
        request: object,
        timeout: float | None,
        metadata: Mapping[str, str] | None = None,
        wait_for_ready: bool = False,
    ) -> Any:
        attempts = self._connection.attempts(timeout, time.monotonic())
        while True:
            self._check_open()
            try:
                return method(
                    request,
                    timeout=attempts.remaining(time.monotonic()),
                    metadata=self._connection.metadata_with(metadata),
                    wait_for_ready=wait_for_ready,
                )
            except grpc.RpcError as error:
                delay = self._delay_after(error, attempts)
            time.sleep(delay)

    def _stream(
        self, request: rerank_pb2.StreamRerankRequest, attempts: core.Attempts
    ) -> Generator[rerank_pb2.StreamRerankResponse, None, None]:
        while True:
            self._check_open()
            call = self._stub.StreamRerank(
                request,
                timeout=attempts.remaining(time.monotonic()),
                metadata=self._connection.metadata,
            )
            try:
                for message in call:
                    attempts.commit()
                    yield message
                return
            except grpc.RpcError as error:
                delay = self._delay_after(error, attempts)
            finally:
                # Ends a call that the caller has left; one that is over stays as it is.
                call.cancel()
            time.sleep(delay)

    def _delay_after(self, error: grpc.RpcError, attempts: core.Attempts) -> float:
        """Tells apart a call that `close` has ended from one that the server has."""
        if self._closed and error.code() is grpc.StatusCode.CANCELLED:
            raise Cancelled("the client was closed") from error
        return attempts.delay_after(error, time.monotonic())

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")


class RerankStream:
    """The results of one stream_rerank call, in the order of scoring.

    Iterate it once. Leaving early without `close` (or `with`) cancels the call
    when the stream is collected.
    """

    def __init__(self, incoming: Generator[rerank_pb2.StreamRerankResponse, None, None]) -> None:
        self._reader = core.StreamReader()
        self._results = self._read(incoming)

    @property
    def summary(self) -> RerankSummary:
        """What is said once about the call; there when the last result has been read."""
        return self._reader.summary

    def close(self) -> None:
        """Cancels the call if it is not over."""
        self._results.close()

    def _read(
        self, incoming: Generator[rerank_pb2.StreamRerankResponse, None, None]
    ) -> Generator[ScoredDocument, None, None]:
        with closing(incoming):
            for message in incoming:
                yield from self._reader.feed(message)
        self._reader.finish()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ScoredDocument:
        return next(self._results)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
