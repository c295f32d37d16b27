"""Builds the two gRPC servers, starts them and stops them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from rerank_grpc.config import Settings
from rerank_grpc.cpus import OneCpu
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.registry import Loader, registry_for
from rerank_grpc.reranker import Reranker
from rerank_grpc.server import health, reflection
from rerank_grpc.server.admin_service import ModelAdminServicer
from rerank_grpc.server.health import HealthService
from rerank_grpc.server.interceptors import TokenInterceptor
from rerank_grpc.server.rerank_service import RerankServicer
from rerank_grpc.v1 import rerank_pb2, rerank_pb2_grpc

log = logging.getLogger(__name__)

RERANK_SERVICE = rerank_pb2.DESCRIPTOR.services_by_name["RerankService"].full_name
ADMIN_SERVICE = rerank_pb2.DESCRIPTOR.services_by_name["ModelAdminService"].full_name

# A call that sends headers and no body holds a thread until its connection is
# too old. So one connection may hold fewer streams than there are workers, and
# there are more workers than the engine admits calls, so that some are always
# left to refuse what is too much.
SPARE_WORKERS = 32


class RerankServer:
    """The service: the registry, the reranker, and the gRPC servers in front of them.

    Raises ConfigurationError if a port cannot be bound, or the CPU for calls is none of this process's.
    """

    def __init__(
        self, settings: Settings, *, load: Loader | None = None, on_hang: Callable[[], None] = lambda: None
    ) -> None:
        self.settings = settings
        self._health = HealthService([RERANK_SERVICE])
        # For the threads that answer calls; the registry's, which compute, are started outside.
        self.call_cpu = OneCpu(settings.call_cpu)
        self.registry = registry_for(settings, load, callers=self.call_cpu, on_change=self._show_health)
        self._stopping = threading.Lock()
        self._stopped = threading.Event()
        self._main, self.port = self.call_cpu.run(self._build_main)
        self._admin, self.admin_port = self._build_admin()

    def start(self) -> None:
        """Serves at once, NOT_SERVING, and loads the models in the background."""
        if self.call_cpu.number is not None:
            log.info("calls are answered on CPU %d", self.call_cpu.number)
        self.call_cpu.run(self._main.start)
        if self._admin:
            self._admin.start()
        self.registry.start()

    def wait_until_loaded(self, timeout: float | None = None) -> bool:
        """Waits until every model is READY or FAILED: see Registry.wait_until_loaded."""
        return self.registry.wait_until_loaded(timeout)

    def wait(self) -> None:
        """Blocks until `stop` has ended."""
        self._stopped.wait()

    def leave(self) -> None:
        """Tells probes that no new calls should come; calls are still answered."""
        self._health.shut_down()

    def stop(self, grace_seconds: float | None = None) -> None:
        """Drains: probes see NOT_SERVING, new calls are refused, those inside have the grace to finish."""
        grace = self.settings.grace_seconds if grace_seconds is None else grace_seconds
        with self._stopping:
            if self._stopped.is_set():
                return
            self.leave()
            self._main.stop(grace).wait()
            self.registry.close()
            if self._admin:
                self._admin.stop(0).wait()
            self._stopped.set()

    def _show_health(self) -> None:
        self._health.set_serving(self.registry.serving)

    def _build_main(self) -> tuple[grpc.Server, int]:
        settings = self.settings
        workers = settings.engine.max_calls + SPARE_WORKERS
        streams = settings.engine.max_calls
        interceptors: list[grpc.ServerInterceptor] = []
        if settings.tokens:
            interceptors.append(TokenInterceptor(settings.tokens, public=[health.SERVICE]))
        server = grpc.server(
            ThreadPoolExecutor(workers, thread_name_prefix="rerank"),
            interceptors=interceptors,
            options=_options(settings, streams),
        )
        servicer = RerankServicer(Reranker(self.registry, settings.limits), self.registry, settings.limits)
        rerank_pb2_grpc.add_RerankServiceServicer_to_server(servicer, server)
        # As many threads as one connection has streams, and more: the threads exist only when used.
        self._health.add_to(server, ThreadPoolExecutor(workers, thread_name_prefix="health"))
        reflection.add_reflection(
            server,
            [RERANK_SERVICE, health.SERVICE],
            ThreadPoolExecutor(workers, thread_name_prefix="reflection"),
        )
        return server, _bind(server, settings.host, settings.port, "--port")

    def _build_admin(self) -> tuple[grpc.Server | None, int | None]:
        settings = self.settings
        if settings.admin_port is None:
            return None, None
        pool = ThreadPoolExecutor(8, thread_name_prefix="admin")
        server = grpc.server(pool, options=_options(settings, streams=8))
        admin = ModelAdminServicer(self.registry, settings.limits)
        rerank_pb2_grpc.add_ModelAdminServiceServicer_to_server(admin, server)
        self._health.add_to(server, ThreadPoolExecutor(16, thread_name_prefix="admin-health"))
        reflection.add_reflection(
            server,
            [ADMIN_SERVICE, health.SERVICE],
            ThreadPoolExecutor(16, thread_name_prefix="admin-reflection"),
        )
        return server, _bind(server, settings.admin_host, settings.admin_port, "--admin-port")


def _options(settings: Settings, streams: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.limits.message_bytes),
        ("grpc.max_send_message_length", settings.limits.reply_bytes),
        ("grpc.max_concurrent_streams", streams),
        ("grpc.max_connection_age_ms", round(settings.connection_age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", round(settings.connection_age_grace_seconds * 1000)),
        # On by default, it counts calls that have ended but whose objects are still being freed as
        # streams, and refuses new ones (RST_STREAM 7) to a client that keeps to the limit above.
        ("grpc.http.overload_protection", 0),
        # On by default: a second server on the same port would start without an error.
        ("grpc.so_reuseport", 0),
        # Clients that keep an idle connection alive through a NAT ping every 30 s or so.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ]


def _bind(server: grpc.Server, host: str, port: int, option: str) -> int:
    try:
        return server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: the port is taken or the address is not this machine's; "
            f"choose another with {option}, or stop what listens there"
        ) from error
