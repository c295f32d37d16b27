"""grpc.health.v1.Health: what orchestrators probe, answered however busy the service is."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2

from rerank_grpc.server.pools import on_pool

SERVICE = health.SERVICE_NAME


class HealthService:
    """One state for "" and for every named service, changed together.

    Several servers (the main and the admin one) can show the same state.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._names = ("", *services)
        self._servicer = health.HealthServicer(experimental_non_blocking=True)
        self.set_serving(False)

    def set_serving(self, serving: bool) -> None:
        """Tells all who ask or watch whether the service can be called."""
        state = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in self._names:
            self._servicer.set(name, state)

    def shut_down(self) -> None:
        """Turns to NOT_SERVING for good."""
        self._servicer.enter_graceful_shutdown()

    def add_to(self, server: grpc.Server, pool: ThreadPoolExecutor) -> None:
        """Registers the service, to be run on a pool that nothing else can fill."""
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(
                on_pool(self._servicer.Check, pool),
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                on_pool(self._servicer.Watch, pool, non_blocking=True),
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
