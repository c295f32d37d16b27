"""Lanes: a thread pool for the calls of some methods, with bounds on the wait for their callers.

Every method is registered as one that takes a stream of requests: grpcio then leaves the wait for the request
and its parsing to the lane's thread, and callers see no difference.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from operator import methodcaller
from time import monotonic
from typing import Any, NamedTuple, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from rerank_grpc.config.allowance import scaled
from rerank_grpc.errors import Cancelled, InvalidRequest, PermissionDenied, RerankError, Unauthenticated
from rerank_grpc.limits import ANSWER_BYTES
from rerank_grpc.server.guard import Edge
from rerank_grpc.server.handler import answering
from rerank_grpc.server.patience import Patience, Waiting

log = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# Makes a request of a message's bytes, or raises InvalidRequest.
Parse: TypeAlias = Callable[[bytes], Any]

# The longest wait for a request, and for an answer's reader, besides the time that the bytes take.
REQUEST_SECONDS, READER_SECONDS = 5.0, 10.0
# The largest request without texts, which holds names alone.
SMALL_BYTES = 4_096
# Small requests awaited at once: gRPC would let each grow to the limit of the largest method. The threads
# are far more, because in a crowd each is freed within milliseconds.
SMALL_CAPACITY, SMALL_THREADS = 16, 128
# A stopping server's wait for a caller.
DRAIN_SECONDS = 1.0
LEFT_EARLY = "the caller left before its request was there"


class Pool(ThreadPoolExecutor):
    """A thread pool that survives when no thread can be started; `backlog` counts calls without a thread.

    `starved` tells whether the last call found no thread and could start none. Where the process may start
    no more threads, a call is queued for those that exist: an exception would end grpcio's serving thread,
    and so the server.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self.starved = False
        self.backlog: Callable[[], int] = self._work_queue.qsize
        self.submit(int).result()  # starts a first thread at once

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            submitted = super().submit(function, *args, **kwargs)
            self.starved = False
            return submitted
        except RuntimeError as error:
            if "new thread" not in str(error):
                raise
            self.starved = True
            log.error("no thread can be started: calls wait for those there are", extra={"kind": "no thread"})
            done: Future[Any] = Future()  # the call was queued before the thread was to start
            done.set_result(None)
            return done


def on_pool(handler: Callable[..., Any], pool: ThreadPoolExecutor) -> Any:
    """Has grpcio run a function on `pool`; it must be one server's own, and no servicer's method."""
    handler.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return handler


class Lane:
    """A thread pool, and the bounds on its calls' wait for a request and for a reader."""

    def __init__(
        self,
        name: str,
        patience: Patience,
        edge: Edge,
        *,
        threads: int = SMALL_THREADS,
        seconds: float = REQUEST_SECONDS,
        capacity: int = SMALL_CAPACITY,
        readers: float = math.inf,
        stream_seconds: float = math.inf,
        drain_seconds: float = DRAIN_SECONDS,
        drains_readers: bool = True,
    ) -> None:
        """Bounds the waits: at most `capacity` calls wait for a request, each at most `seconds`.

        At most `readers` answers wait for their reader, and a stream takes `stream_seconds` in all. A
        stopping server cuts the wait for a request to `drain_seconds`, and with `drains_readers` that for a
        reader too.
        """
        self._edge = edge
        self._pool = Pool(threads, name)
        backlog = partial(_crowd, self._pool, capacity)
        self._requests = Waiting(f"a request ({name})", seconds, capacity=capacity, backlog=backlog)
        self._readers = Waiting(
            f"a reader ({name})", READER_SECONDS, capacity=readers, capacity_bytes=scaled(ANSWER_BYTES)
        )
        self._streams = Waiting(f"the end of a stream ({name})", stream_seconds)
        for waiting in (self._requests, self._readers, self._streams):
            patience.look_after(waiting)
        self._inside: set[grpc.ServicerContext] = set()
        self.last_call = -math.inf  # when the last call came, by the monotonic clock
        self._drain_seconds = drain_seconds
        self._drains_readers = drains_readers

    @property
    def idle(self) -> bool:
        """Whether no call is inside and no answer is on its way."""
        return not (self._inside or self._pool.backlog() or len(self._readers))

    def _enter(self, method: str, context: grpc.ServicerContext) -> None:
        """Counts a call in; records and ends one that may not be answered."""
        self._inside.add(context)
        self.last_call = monotonic()
        try:
            self._edge.admit(method, context)
        except (Unauthenticated, PermissionDenied) as error:
            self._refuse(method, error, context, self.last_call)

    def begin_drain(self) -> None:
        """Shortens the wait for callers, because the server is stopping."""
        self._requests.begin_drain(self._drain_seconds)
        if self._drains_readers:
            self._readers.begin_drain(self._drain_seconds)

    def unary(self, method: str, behaviour: Callable[..., Message], parse: Parse) -> Handler:
        """Makes the handler of a method with one answer; `behaviour` takes a request and its context."""

        def run(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            try:
                self._enter(method, context)
                request = self._request(method, requests, context, parse)
                return self._readers.send_last(behaviour(request, context).SerializeToString(), context)
            finally:
                self._inside.discard(context)

        return grpc.stream_unary_rpc_method_handler(on_pool(run, self._pool))

    def gathering(
        self, method: str, behaviour: Callable[..., Message], parse: Parse, *, most: int, most_bytes: int
    ) -> Handler:
        """Makes the handler of a method with many requests and one answer; `behaviour` takes their list.

        All of them together wait as long as one request may: a caller that sends them bit by bit holds a
        thread for no longer. More than `most`, or than `most_bytes` in all, are refused as they come.
        """

        def run(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            started = monotonic()
            try:
                self._enter(method, context)
                received = self._requests.receive_all(requests, context)
                try:
                    gathered = _gather(received, parse, most, most_bytes)
                except (InvalidRequest, Cancelled) as error:
                    self._refuse(method, error, context, started)
                except grpc.RpcError:
                    self._refuse(method, Cancelled(LEFT_EARLY), context, started)
                return self._readers.send_last(behaviour(gathered, context).SerializeToString(), context)
            finally:
                self._inside.discard(context)

        return grpc.stream_unary_rpc_method_handler(on_pool(run, self._pool))

    def stream(self, method: str, behaviour: Callable[..., Iterator[Message]], parse: Parse) -> Handler:
        """Makes the handler of a method with many answers; the caller has to keep reading them."""

        def answers(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
            request = self._request(method, requests, context, parse)
            self._streams.begin(context)
            return behaviour(request, context)

        return self._sending(method, answers)

    def conversation(self, method: str, behaviour: Callable[..., Iterator[Message]], parse: Parse) -> Handler:
        """Makes the handler of a method with many requests and answers; the wait for each is bounded."""

        def received(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
            self._streams.begin(context)
            while (data := self._message(method, requests, context)) is not None:
                yield self._parsed(method, data, context, parse, monotonic())

        return self._sending(
            method, lambda requests, context: behaviour(received(requests, context), context)
        )

    def _sending(self, method: str, answers: Callable[..., Iterator[Message]]) -> Handler:
        def run(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            try:
                self._enter(method, context)
                messages = map(methodcaller("SerializeToString"), answers(requests, context))
                yield from self._readers.send(messages, context)
            finally:
                self._streams.end(context)
                self._inside.discard(context)

        return grpc.stream_stream_rpc_method_handler(on_pool(run, self._pool))

    def _request(
        self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext, parse: Parse
    ) -> Any:
        """Takes a call's only request, parsed; records and ends a call that brings no proper one."""
        started = monotonic()
        try:
            data = self._message(method, requests, context)
        except grpc.RpcError:
            self._refuse(method, Cancelled(LEFT_EARLY), context, started)
        return self._parsed(method, data, context, parse, started)

    def _message(self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes | None:
        """Takes a call's next message; records and ends a call that has kept the lane waiting too long."""
        started = monotonic()
        try:
            return self._requests.receive(requests, context)
        except Cancelled as error:
            self._refuse(method, error, context, started)

    def _parsed(
        self, method: str, data: bytes | None, context: grpc.ServicerContext, parse: Parse, started: float
    ) -> Any:
        try:
            if data is None:
                raise InvalidRequest("the call ended without a request")
            return parse(data)
        except InvalidRequest as error:
            self._refuse(method, error, context, started)

    def _refuse(
        self, method: str, error: RerankError, context: grpc.ServicerContext, started: float
    ) -> NoReturn:
        """Records and ends a call that has no handler yet; `started` is the beginning of the wait for it."""
        with answering(context, method, self._edge) as record:
            record.started = started
            raise error
        raise AssertionError("answering returned")


def _crowd(pool: Pool, capacity: int) -> int:
    """Counts the calls without a thread; where no thread can be started for them, as a lane that is full.

    A silent caller then keeps its thread for a moment only, however few wait behind it.
    """
    backlog = pool.backlog()
    return backlog + capacity if backlog and pool.starved else backlog


def _gather(received: Iterable[bytes], parse: Parse, most: int, most_bytes: int) -> list[Any]:
    """Parses the messages of a call; raises InvalidRequest for none, and at the first that is too much."""
    gathered: list[Any] = []
    size = 0
    for data in received:
        size += len(data)
        if len(gathered) == most:
            raise InvalidRequest(f"the call has more than the {most:,} requests that are allowed")
        if size > most_bytes:
            raise InvalidRequest(f"the requests have more than the {most_bytes:,} bytes that are allowed")
        gathered.append(parse(data))
    if not gathered:
        raise InvalidRequest("the call ended without a request")
    return gathered


class Service(NamedTuple):
    """A service's full name, its handlers by method, and the lanes that they run in.

    `prefix` stands before its methods' names in records.
    """

    name: str
    handlers: dict[str, Handler]
    lanes: Sequence[Lane]
    prefix: str = ""

    def methods(self) -> Iterator[tuple[str, str]]:
        """Yields the path of each method, and its name in records."""
        for method in self.handlers:
            yield f"/{self.name}/{method}", self.prefix + method


def parser(kind: type[Message], most_bytes: int = SMALL_BYTES) -> Parse:
    """Makes the Parse of a message type; a larger message than `most_bytes` is refused."""
    name = kind.DESCRIPTOR.full_name

    def parse(data: bytes) -> Message:
        if len(data) > most_bytes:
            raise InvalidRequest(f"{name} has {len(data):,} bytes, at most {most_bytes:,} are allowed")
        try:
            return kind.FromString(data)
        except (DecodeError, UnicodeDecodeError) as error:
            # Each implementation of protobuf has an exception of its own for this, and says it in the text.
            if "utf-8" in str(error).lower():
                raise InvalidRequest(f"a text of the {name} is not UTF-8: encode it so") from None
            raise InvalidRequest(f"the message is no {name}, or was cut") from None

    return parse
