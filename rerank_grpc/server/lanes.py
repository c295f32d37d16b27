"""Lanes: where the calls of some methods run, apart from those of all others.

A lane has a thread pool and bounds on how long its calls may wait for their
callers, so that nothing which fills one lane can fill another. Every method is
registered as one that takes a stream of requests, because grpcio then hands the
waiting for the request over to us; callers see no difference. A request is
parsed by the lane's thread and not by grpcio's serving thread, which all calls
share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.server.boundary import boundary
from rerank_grpc.server.patience import Patience
from rerank_grpc.server.pools import Pool, on_pool

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# Makes a request of a message's bytes, or raises InvalidRequest.
Parse: TypeAlias = Callable[[bytes], Any]

# A caller that reads nothing for so long has stalled.
STALL_SECONDS = 10.0
# What a request that brings no texts may be: names are all that it holds.
SMALL_BYTES = 4_096
# How long such a request may take to come.
SMALL_SECONDS = 5.0
# How many of those may be awaited at once: a stranger's may each grow to a whole message's limit.
SMALL_MOST = 16
SMALL_SPARED = 0.005
# More threads than that, because in a crowd each is freed within milliseconds.
SMALL_THREADS = 64
# What a stopping server still waits for a caller.
LAST_SECONDS = 1.0


class Lane:
    """A thread pool, and how long its calls may wait for a request and for a reader."""

    def __init__(
        self,
        name: str,
        patience: Patience,
        *,
        threads: int = SMALL_THREADS,
        seconds: float = SMALL_SECONDS,
        most: int = SMALL_MOST,
        spared: float = SMALL_SPARED,
        stream_seconds: float = math.inf,
        keeps_readers: bool = False,
    ) -> None:
        """Makes a lane of so many threads.

        At most `most` calls wait for a request, each for `seconds`; see
        patience.Waiting. A stream may take `stream_seconds` in all. A stopping
        server gives slow readers their time only where the lane keeps them.
        """
        self._keeps_readers = keeps_readers
        self._pool = Pool(threads, name)
        self._requests = patience.bound(f"a request ({name})", seconds, most=most, spared=spared)
        self._readers = patience.bound(f"a reader ({name})", STALL_SECONDS)
        self._streams = patience.bound(f"the end of a stream ({name})", stream_seconds)

    @property
    def idle(self) -> bool:
        """Whether no call is inside, and no answer is on its way."""
        return self._pool.idle and not len(self._readers)

    def hurry(self) -> None:
        """Waits only shortly for callers from now on, because the server is stopping."""
        for kind in [self._requests] if self._keeps_readers else [self._requests, self._readers]:
            kind.seconds = min(kind.seconds, LAST_SECONDS)

    def unary(self, method: str, behaviour: Callable[..., Message], parse: Parse) -> Handler:
        """Makes the handler of a method with one answer; `behaviour` takes the request and the context."""

        def run(requests: Iterator[bytes], context: grpc.ServicerContext) -> Message:
            response = behaviour(self._request(method, requests, context, parse), context)
            self._readers.answer(context)
            return response

        return grpc.stream_unary_rpc_method_handler(on_pool(run, self._pool), response_serializer=_serialize)

    def stream(self, method: str, behaviour: Callable[..., Iterator[Message]], parse: Parse) -> Handler:
        """Makes the handler of a method with many answers, whose caller has to keep reading them."""

        def run(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
            request = self._request(method, requests, context, parse)
            self._streams.begin(context)
            try:
                yield from self._readers.send(behaviour(request, context), context)
            finally:
                self._streams.end(context)

        return grpc.stream_stream_rpc_method_handler(on_pool(run, self._pool), response_serializer=_serialize)

    def conversation(self, method: str, behaviour: Callable[..., Iterator[Message]], parse: Parse) -> Handler:
        """Makes the handler of a method that takes many requests, none of which may be long in coming."""

        def received(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
            while (data := self._requests.receive(requests, context)) is not None:
                yield _parsed(method, data, context, parse)

        def run(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
            answers = behaviour(received(requests, context), context)
            yield from self._readers.send(answers, context)

        return grpc.stream_stream_rpc_method_handler(on_pool(run, self._pool), response_serializer=_serialize)

    def _request(
        self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext, parse: Parse
    ) -> Any:
        return _parsed(method, self._requests.receive(requests, context), context, parse)


def parser(kind: type[Message], most_bytes: int = SMALL_BYTES) -> Parse:
    """Makes the Parse of a message type, of at most so many bytes."""
    name = kind.DESCRIPTOR.full_name

    def parse(data: bytes) -> Message:
        if len(data) > most_bytes:
            raise InvalidRequest(f"{name} has {len(data):,} bytes, at most {most_bytes:,} are allowed")
        try:
            return kind.FromString(data)
        except DecodeError:
            raise InvalidRequest(f"the message is not a {name}") from None

    return parse


def _parsed(method: str, data: bytes | None, context: grpc.ServicerContext, parse: Parse) -> Any:
    """Makes a request of a message, or ends the call with INVALID_ARGUMENT."""
    try:
        if data is None:
            raise InvalidRequest("the call ended without a request")
        return parse(data)
    except InvalidRequest:
        with boundary(context, method):
            raise


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
