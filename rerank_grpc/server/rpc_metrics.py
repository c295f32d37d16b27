"""gRPC's own metrics of a server, by the names of gRFC A66: each RPC by its method and status.

They are made here: the package with gRPC's own plugin pins one grpcio and is experimental.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial, wraps
from time import monotonic
from typing import Any, NamedTuple

import grpc

from rerank_grpc.server.interceptors import Observer
from rerank_grpc.server.lanes import Handler
from rerank_grpc.telemetry.families import OTHER, Children, MetricFamily
from rerank_grpc.telemetry.registry import MetricsRegistry

# The buckets that A66 names, in seconds and in bytes.
DURATIONS = (
    *(0, 0.00001, 0.00005, 0.0001, 0.0003, 0.0006, 0.0008),
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008),
    *(0.01, 0.013, 0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08),
    *(0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8),
    *(1, 2, 5, 10, 20, 50, 100),
)
SIZES = (0, 1 << 10, 1 << 11, 1 << 12, *(1 << power for power in range(14, 33, 2)))

STARTED = MetricFamily(
    "grpc_server_call_started_total",
    "counter",
    "RPCs that have begun, those that have not ended too.",
    ("grpc_method",),
    "calls",
)
DURATION = MetricFamily(
    "grpc_server_call_duration_seconds",
    "histogram",
    "Time from an RPC's headers to its end, with the wait for a thread and for a reader.",
    ("grpc_method", "grpc_status"),
    "seconds",
    DURATIONS,
)
SENT = MetricFamily(
    "grpc_server_call_sent_total_compressed_message_size_bytes",
    "histogram",
    "Bytes of all answers of an RPC as they are serialized: the service compresses none.",
    ("grpc_method", "grpc_status"),
    "bytes",
    SIZES,
)
RECEIVED = MetricFamily(
    "grpc_server_call_rcvd_total_compressed_message_size_bytes",
    "histogram",
    "Bytes of all requests of an RPC as they are serialized: of a caller that compresses its own, more than "
    "it has sent.",
    ("grpc_method", "grpc_status"),
    "bytes",
    SIZES,
)
FAMILIES = (STARTED, DURATION, SENT, RECEIVED)

_MAKERS: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
# When the RPC of this context was intercepted: grpcio runs its handler in the same one.
_began: ContextVar[float] = ContextVar("_began")


class _Ended(NamedTuple):
    """An RPC that has ended: the name of its status, its seconds, and the bytes of its messages."""

    method: str
    status: str
    seconds: float
    sent: int
    received: int


class _Rpc:
    """An RPC that is being answered: the bytes so far, and its status where its handler sets none."""

    __slots__ = ("began", "method", "received", "sent", "status")

    def __init__(self, method: str) -> None:
        self.method = method
        self.began = _began.get()
        self.received = self.sent = 0
        self.status = "CANCELLED"  # unless its handler comes to an end

    def ended(self, status: str) -> _Ended:
        """Tells how it is at its end."""
        return _Ended(self.method, status, monotonic() - self.began, self.sent, self.received)

    def fail(self, error: Exception) -> None:
        """Notes what a handler has raised: grpcio tells it by an RpcError that the caller has left."""
        if not isinstance(error, grpc.RpcError):
            self.status = "UNKNOWN"


class _Requests:
    """The requests of an RPC, counted as they come."""

    __slots__ = ("_requests", "_rpc")

    def __init__(self, rpc: _Rpc, requests: Iterator[Any]) -> None:
        self._rpc = rpc
        self._requests = requests

    def __iter__(self) -> _Requests:
        return self

    def __next__(self) -> Any:
        request = next(self._requests)
        self._rpc.received += _size(request)
        return request


class _Answers:
    """The answers of an RPC, counted as they go; no generator, which its handler's would outlive."""

    __slots__ = ("_answers", "_rpc")

    def __init__(self, rpc: _Rpc, answers: Iterator[Any]) -> None:
        self._rpc = rpc
        self._answers = answers

    def __iter__(self) -> _Answers:
        return self

    def __next__(self) -> Any:
        try:
            answer = next(self._answers)
        except StopIteration:
            self._rpc.status = "OK"
            raise
        except Exception as error:
            self._rpc.fail(error)
            raise
        self._rpc.sent += _size(answer)
        return answer


class RpcMetrics(Observer):
    """Counts the RPCs of one or several servers; a method that none of them has counts as OTHER.

    An RPC begins with its headers, and ends when grpcio has sent its status or its caller has left: both are
    seen on grpcio's serving thread, where each costs some microseconds.
    """

    def __init__(self, registry: MetricsRegistry) -> None:
        self._begin = registry.later(self._count_start)
        self._end = registry.later(self._count_end)
        self._started = Children(STARTED.counter(registry))
        self._durations = Children(DURATION.histogram(registry))
        self._sent = Children(SENT.histogram(registry))
        self._received = Children(RECEIVED.histogram(registry))
        self._methods: dict[str, str] = {}
        self._counted: dict[tuple[str, Handler], Handler] = {}

    def expect(self, methods: Iterable[str]) -> None:
        """Gives methods series of their own, which begin at 0."""
        for method in methods:
            self._methods[f"/{method}"] = method
            self._started[method,].inc(0)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Counts the RPC, and has its handler count the rest."""
        _began.set(monotonic())
        method = self._methods.get(handler_call_details.method, OTHER)
        self._begin(method)
        handler = continuation(handler_call_details)
        if handler is None:  # grpcio says so, and has no handler of its own to be counted
            self._end(_Rpc(method).ended(grpc.StatusCode.UNIMPLEMENTED.name))
            return None
        counted = self._counted.get((method, handler))
        if counted is None:
            counted = self._counted[method, handler] = self._count(method, handler)
        return counted

    def _count(self, method: str, handler: Handler) -> Handler:
        """Makes the handler that runs another in its own pool, and counts."""
        many_requests, many_answers = bool(handler.request_streaming), bool(handler.response_streaming)
        behaviour: Any = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )

        @wraps(behaviour)  # with its experimental_thread_pool
        def run(request: Any, context: grpc.ServicerContext) -> Any:
            rpc = _Rpc(method)
            over = partial(self._over, rpc, context)
            if not context.add_callback(over):
                over()
            if many_requests:
                request = _Requests(rpc, request)
            else:
                rpc.received = _size(request)
            try:
                answer = behaviour(request, context)
            except Exception as error:
                rpc.fail(error)
                raise
            if many_answers:
                return _Answers(rpc, answer)
            rpc.sent, rpc.status = _size(answer), "OK"
            return answer

        make = _MAKERS[many_requests, many_answers]
        return make(run, handler.request_deserializer, handler.response_serializer)

    def _over(self, rpc: _Rpc, context: Any) -> None:
        code = context.code()
        # As it is now: the handler of a call whose caller has left may go on.
        self._end(rpc.ended(code.name if code else rpc.status))

    def _count_start(self, method: str) -> None:
        self._started[method,].inc()

    def _count_end(self, rpc: _Ended) -> None:
        labels = rpc.method, rpc.status
        self._durations[labels].observe(rpc.seconds)
        self._sent[labels].observe(rpc.sent)
        self._received[labels].observe(rpc.received)


def _size(message: Any) -> int:
    """Tells a message's bytes; the service's own lanes give and take them serialized."""
    return len(message) if isinstance(message, bytes) else message.ByteSize()
