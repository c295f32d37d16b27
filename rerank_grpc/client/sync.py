"""The client for threads: a thin shell over :mod:`core`."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from typing import Self, Unpack

import grpc

from rerank_grpc.client import arguments, core
from rerank_grpc.client.arguments import CallOptions, DocumentLike, RerankOptions
from rerank_grpc.client.errors import ServerUnavailable
from rerank_grpc.errors import Cancelled
from rerank_grpc.types import Health, ModelInfo, RerankRequest, RerankResponse, ScoredDocument
from rerank_grpc.v1 import rerank_pb2 as pb


class Client(core.BaseClient["RerankStream"]):
    """Calls a rerank service; threads may share one."""

    def _begin(self) -> None:
        self._channel: grpc.Channel = self._connect(grpc)
        self._stub = core.stub_of(self._channel)

    def rerank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        model: str | None = None,
        top_n: int | None = None,
        **options: Unpack[RerankOptions],
    ) -> RerankResponse:
        """Scores documents against a query, best first.

        A document is a text, a Document or a mapping with "text" and maybe "id".
        `truncation` is "end", "start" or "none", `priority` "interactive" or "batch".
        """
        request, call = arguments.rerank_request(query, documents, model, top_n, **options)
        return self.send(request, **call)

    def send(self, request: RerankRequest, **call: Unpack[CallOptions]) -> RerankResponse:
        """Scores the documents of a request, best first: `rerank` without its checks of types."""
        return self._call(core.rerank(request), **call)

    def list_models(self, **call: Unpack[CallOptions]) -> tuple[ModelInfo, ...]:
        """Lists the configured models; the default model is first."""
        return self._call(core.list_models(), **call)

    def health(self, model: str | None = None, **call: Unpack[CallOptions]) -> Health:
        """Tells whether a call for a model would be answered, and how full its queue is."""
        return self._call(core.health(model), **call)

    def serving(self, service: str = "", **call: Unpack[CallOptions]) -> bool:
        """Asks grpc.health.v1, which needs no token, whether the default model can be called.

        `service` names one of the server's services; an unknown one raises UnexpectedStatus.
        """
        return self._call(core.serving(service), **call)

    def wait_until_ready(self, timeout: float | None = None, *, model: str | None = None) -> Health:
        """Waits until a server is there and a call for the model would be answered.

        Raises DeadlineExceeded when the time is over; ModelFailed or TlsError when waiting does not help.
        """
        question = core.health(model)
        attempts = self._attempts(timeout=timeout)
        patience = core.READY_LOOK_SECONDS
        while remaining := attempts.remaining:
            health = None
            with suppress(*core.NOT_YET):
                health = self._call(question, timeout=min(remaining, patience), wait_for_ready=True)
                if core.is_ready(health):
                    return health
            silent = health is None and patience < remaining
            if silent and (problem := self._inquiry.look(attempts.remaining)):
                raise problem
            patience = math.inf
            time.sleep(min(core.READY_POLL_SECONDS, attempts.remaining))
        raise self._not_ready()

    def close(self) -> None:
        """Ends the client; calls in progress raise Cancelled."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self, rpc: core.Rpc[core.Reply], *, wait_for_ready: bool = False, **call: Unpack[CallOptions]
    ) -> core.Reply:
        attempts = self._attempts(**call)
        while True:
            self._check_open()
            try:
                reply = getattr(self._stub, rpc.method)(
                    rpc.message,
                    timeout=attempts.remaining,
                    metadata=attempts.metadata,
                    wait_for_ready=wait_for_ready,
                )
            except grpc.RpcError as error:
                delay = self._delay_after(error, attempts)
            else:
                return rpc.read(reply)
            time.sleep(delay)

    def _results(self, message: pb.StreamRerankRequest, attempts: core.Attempts) -> RerankStream:
        return RerankStream(self._stream(message, attempts))

    def _stream(
        self, message: pb.StreamRerankRequest, attempts: core.Attempts
    ) -> Generator[pb.StreamRerankResponse, None, None]:
        while True:
            self._check_open()
            call = self._stub.StreamRerank(message, timeout=attempts.remaining, metadata=attempts.metadata)
            try:
                for part in call:
                    attempts.commit()
                    yield part
                return
            except grpc.RpcError as error:
                delay = self._delay_after(error, attempts)
            finally:
                # Ends a call that the caller has left; one that is over stays as it is.
                call.cancel()
            time.sleep(delay)

    def _delay_after(self, error: grpc.RpcError, attempts: core.Attempts) -> float:
        """Raises Cancelled for a call that `close` has ended."""
        if self._closed and error.code() is grpc.StatusCode.CANCELLED:
            raise Cancelled("the client was closed") from error
        try:
            return attempts.delay_after(error)
        except ServerUnavailable as unavailable:
            if attempts.committed:
                raise
            raise self._inquiry.explain(unavailable, attempts.remaining) from error


class RerankStream(core.Stream, Iterator[ScoredDocument]):
    """The results of one stream_rerank call, in the order of scoring, to be read once.

    Leaving early without `close` (or `with`) cancels the call when the stream is collected.
    """

    def __init__(self, incoming: Generator[pb.StreamRerankResponse, None, None]) -> None:
        super().__init__()
        self._results = self._read_all(incoming)

    def close(self) -> None:
        """Cancels the call if it is not over."""
        self._results.close()

    def _read_all(
        self, incoming: Generator[pb.StreamRerankResponse, None, None]
    ) -> Generator[ScoredDocument, None, None]:
        with closing(incoming):
            for message in incoming:
                yield from self._read(message)
        self._finish()

    def __next__(self) -> ScoredDocument:
        return next(self._results)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
