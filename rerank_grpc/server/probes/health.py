"""Health for orchestrators and reflection for tools, answered however busy the service is.

grpcio's own health servicer holds its lock while it sends, so one caller that
reads nothing silences every probe, and it keeps each name that it is asked for.
Nothing is stored here: the state is asked for, and a watcher's own thread sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from rerank_grpc.server.guard import Edge
from rerank_grpc.server.lanes import SMALL_THREADS, Lane, Service, parser
from rerank_grpc.server.patience import Patience

HEALTH_SERVICE = health.SERVICE_NAME
V1ALPHA = reflection.SERVICE_NAME
# The name that newer tools ask for first. It is not listed, because its descriptor is not shipped.
V1 = "grpc.reflection.v1.ServerReflection"
# Between two questions of one stream.
QUESTION_SECONDS = 10.0
# Watchers of one server; each has a thread.
MOST_WATCHERS = 128
# A longer name is no service's.
NAME_BYTES = 256

_Response = health_pb2.HealthCheckResponse


class HealthService:
    """One server's health: one state for "" and for every named service; `serving` tells it.

    Each of at most MOST_WATCHERS watchers has a thread. One more is told that there is no Watch: a gRPC
    client then takes the server for healthy (gRFC A17), so hostile watchers keep no client out.
    """

    def __init__(self, services: Iterable[str], serving: Callable[[], bool]) -> None:
        self._names = frozenset(("", *services))
        self._serving = serving
        self._leaving = False
        self._wakeups: dict[grpc.ServicerContext, SimpleQueue[None]] = {}

    @property
    def watchers(self) -> int:
        """The number of watchers."""
        return len(self._wakeups)

    def changed(self) -> None:
        """Wakes every watcher to read the state again, and waits for none of them."""
        for wakeup in self._wakeups.copy().values():
            if wakeup.empty():  # a busy watcher needs no second wakeup
                wakeup.put(None)

    def shut_down(self) -> None:
        """Turns to NOT_SERVING for good, and ends the watches when their callers have been told."""
        self._leaving = True
        self.changed()

    def service(self, patience: Patience, edge: Edge, name: str) -> Service:
        """Makes the service, in lanes that nothing else can fill."""
        parse = parser(health_pb2.HealthCheckRequest)
        checks = Lane(f"{name}-check", patience, edge)
        watches = Lane(f"{name}-watch", patience, edge, threads=MOST_WATCHERS + SMALL_THREADS)
        handlers = {
            "Check": checks.unary("Check", self._check, parse),
            "Watch": watches.stream("Watch", self._watch, parse),
        }
        return Service(HEALTH_SERVICE, handlers, [checks, watches])

    def _status_of(self, service: str) -> int:
        if service not in self._names:
            return _Response.SERVICE_UNKNOWN
        return _Response.SERVING if not self._leaving and self._serving() else _Response.NOT_SERVING

    def _check(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> _Response:
        status = self._status_of(_service(request, context))
        if status == _Response.SERVICE_UNKNOWN:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return _Response(status=status)

    def _watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[_Response]:
        """Yields the status of a service, at once and after each change; ends when the server stops."""
        service, told = _service(request, context), None
        wakeup: SimpleQueue[None] = SimpleQueue()
        self._wakeups[context] = wakeup
        try:
            if len(self._wakeups) > MOST_WATCHERS:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "too many watch already: ask by Check")
            if not context.add_callback(lambda: wakeup.put(None)):
                return
            while context.is_active():
                leaving, status = self._leaving, self._status_of(service)
                if status != told:
                    told = status
                    yield _Response(status=status)
                if leaving:
                    return
                wakeup.get()
        finally:
            self._wakeups.pop(context, None)


def _service(request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> str:
    service: str = request.service
    if len(service.encode()) > NAME_BYTES:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a service's name has at most {NAME_BYTES} bytes")
    return service


def reflection_services(listed: Iterable[str], patience: Patience, edge: Edge, name: str) -> list[Service]:
    """Makes server reflection of the listed services, under both its names and in one lane."""
    servicer = reflection.ReflectionServicer((*listed, V1ALPHA))
    lane = Lane(f"{name}-reflection", patience, edge, seconds=QUESTION_SECONDS)
    parse = parser(reflection_pb2.ServerReflectionRequest)
    method = "ServerReflectionInfo"
    handlers = {method: lane.conversation(method, servicer.ServerReflectionInfo, parse)}
    return [Service(V1ALPHA, handlers, [lane]), Service(V1, handlers, [])]
