"""Builds the two gRPC servers, starts them and stops them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import grpc

from rerank_grpc.access.accepted import AccessList
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.config.targets import is_loopback
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.files import open_files
from rerank_grpc.limits import LIMITS
from rerank_grpc.registry.loading import Loader
from rerank_grpc.reranker import Reranker, build_reranker
from rerank_grpc.server.guard import Edge, Guard
from rerank_grpc.server.interceptors import AccessInterceptor, Observer
from rerank_grpc.server.kserve.service import KServeServicer, kserve_service
from rerank_grpc.server.lanes import Lane, Service
from rerank_grpc.server.listening.credentials import credentials_of
from rerank_grpc.server.listening.ports import bind, bind_socket
from rerank_grpc.server.methods import RERANK_SERVICE, admin_service, call_lanes, rerank_service
from rerank_grpc.server.patience import Patience
from rerank_grpc.server.probes.channelz import channelz_service
from rerank_grpc.server.probes.health import (
    HEALTH_SERVICE,
    HealthService,
    reflection_services,
)
from rerank_grpc.server.services import ModelAdminServicer, RerankServicer
from rerank_grpc.server.tei import TeiServicer, tei_services
from rerank_grpc.telemetry.call_log import log_call
from rerank_grpc.telemetry.records import BatchSink, Sink
from rerank_grpc.tls.serving import Certificates
from rerank_grpc.types import Health

# Connections of a port, where the limit of open files allows them.
MOST_CONNECTIONS, MOST_ADMIN_CONNECTIONS = 8_192, 64
ADMIN_STREAMS = 16
# A watch of health takes one of a connection's streams for good.
LEAST_STREAMS = 8
# A connection without a call is closed after this, so that strangers cannot hold it for long.
IDLE_SECONDS = 60.0
# A connection that has not begun HTTP/2 by then is closed.
HANDSHAKE_SECONDS = 10.0
# The interval at which a stopping server looks for calls that are left inside, and the time without
# one after which connections that stay are cut.
DRAIN_LOOK_SECONDS, GOODBYE_SECONDS = 0.1, 0.5


class RerankServer:
    """The service: the reranker, its registry, and the gRPC servers in front of them.

    `port` is 0 where the main server listens on a Unix socket.

    `sinks` get the record of each call, `on_batch` that of each batch; `interceptors` see each call of both
    servers first. `on_hang` is called when a model's device hangs, after its calls have failed: only a
    restart of the process frees it. Raises ConfigurationError if a port cannot be bound.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        loader: Loader | None = None,
        on_hang: Callable[[], None] = lambda: None,
        sinks: Sequence[Sink] = (log_call,),
        on_batch: BatchSink | None = None,
        interceptors: Sequence[Observer] = (),
    ) -> None:
        self.settings = settings
        self.certificates = Certificates(settings.tls) if settings.tls else None
        by_certificate = self.certificates is not None and self.certificates.names_callers
        self.access = AccessList(settings.access_tokens, settings.token_file, by_certificate=by_certificate)
        guard = Guard(self.access, open_reflection=settings.reflection == "open") if self.access else None
        self._edge = Edge(sinks, guard)
        self._observers = interceptors
        self._patience = Patience()
        self._leaving = False
        self._health: list[HealthService] = []
        self._methods: dict[str, str] = {}  # each method's name in records, by its path
        self.reranker = build_reranker(
            settings, loader, on_change=self._show_health, on_hang=on_hang, on_batch=on_batch
        )
        self.registry = self.reranker.registry
        self._stopping = threading.Lock()
        self._stopped = threading.Event()
        # Twice the calls that are admitted: see overload protection below.
        streams = 2 * max(settings.max_calls, LEAST_STREAMS)
        self._main = self._build(streams=streams, connections=MOST_CONNECTIONS)
        services = call_services(
            self.reranker, self._patience, lambda: self._leaving, self._edge, max_calls=settings.max_calls
        )
        self._lanes = self._register(self._main, services, "main")
        self._socket = bind_socket(self._main, settings.host, "--host")
        self.port = 0 if self._socket else self._bind(self._main, settings.host, settings.port, "--port")
        # A further port for this machine alone, on which no stranger can take REST's last connection. It is
        # plain: only this process calls it. Beside a socket, whose mode bounds who may call, there is none.
        needs_port = settings.rest.port is not None and self._socket is None
        self.local_port = bind(self._main, "127.0.0.1", 0, "--rest-port off") if needs_port else None
        self._admin, self.admin_port = self._build_admin()

    def start(self) -> None:
        """Serves at once, NOT_SERVING, and loads the models in the background."""
        self.access.watch()
        if self.certificates:
            self.certificates.watch()
        self._patience.start()
        self._main.start()
        if self._admin:
            self._admin.start()
        self.registry.start()

    def wait_until_loaded(self, timeout: float | None = None) -> bool:
        """Waits at most `timeout` seconds until every model is READY or FAILED."""
        return self.registry.wait_until_loaded(timeout)

    def health(self) -> Health:
        """Tells the default model's health, without a call."""
        return self.registry.health("")

    def wait(self) -> None:
        """Blocks until `stop` has ended."""
        self._stopped.wait()

    def quiet_seconds(self) -> float:
        """Tells for how long nobody has called the main server, for its health neither."""
        return monotonic() - max(lane.last_call for lane in self._lanes)

    def leave(self) -> None:
        """Tells probes that no new calls should come; calls are still answered."""
        self._leaving = True
        for health in self._health:
            health.shut_down()

    def _show_health(self) -> None:
        for health in self._health:
            health.changed()

    def stop(self, grace_seconds: float | None = None) -> None:
        """Drains: probes see NOT_SERVING, new calls are refused, calls inside have the grace to finish."""
        grace = self.settings.grace_seconds if grace_seconds is None else grace_seconds
        with self._stopping:
            if self._stopped.is_set():
                return
            self.leave()
            self._drain(grace)
            self.registry.close()
            if self._admin:
                self._admin.stop(0).wait()
            self._patience.close()
            self.access.close()
            if self.certificates:
                self.certificates.close()
            if self._socket:
                self._socket.remove()
            self._stopped.set()

    def _drain(self, grace: float) -> None:
        """Stops the main server, at the latest after the grace.

        grpcio would wait all of it for a connection that does not answer its
        goodbye. A call on its way when the goodbye was sent has GOODBYE_SECONDS.
        """
        for lane in self._lanes:
            lane.begin_drain()
        stopped, busy = self._main.stop(grace), monotonic()
        while not stopped.wait(DRAIN_LOOK_SECONDS):
            now = monotonic()
            if not all(lane.idle for lane in self._lanes):
                busy = now
            elif now - busy > GOODBYE_SECONDS:
                stopped = self._main.stop(0)

    def _build_admin(self) -> tuple[grpc.Server | None, int | None]:
        settings = self.settings
        if settings.admin_port is None:
            return None, None
        if self._edge.guard is None and not is_loopback(settings.admin_host):
            raise ConfigurationError(
                f"--admin-host {settings.admin_host}: whoever reaches the admin port from other machines "
                "could load and unload models: give operators the right admin in --token-file, or listen on "
                "127.0.0.1"
            )
        server = self._build(streams=ADMIN_STREAMS, connections=MOST_ADMIN_CONNECTIONS)
        servicer = ModelAdminServicer(self.registry, self._edge)
        own = [admin_service(servicer, self._patience, self._edge)]
        own.append(channelz_service(self._patience, self._edge))
        self._register(server, own, "admin")
        return server, self._bind(server, settings.admin_host, settings.admin_port, "--admin-port")

    def _bind(self, server: grpc.Server, host: str, port: int, option: str) -> int:
        """Binds to an address, by TLS where there is a certificate."""
        return bind(server, host, port, option, credentials_of(self.certificates))

    def _build(self, *, streams: int, connections: int) -> grpc.Server:
        """Makes a server without services; where tokens are set, all but its public ones needs one."""
        settings = self.settings
        interceptors: list[grpc.ServerInterceptor] = [*self._observers]
        if self._edge.guard is not None:
            interceptors.append(AccessInterceptor(self._edge, self._methods))
        # Every method runs in a lane's pool; this thread tells callers that a method is unknown.
        pool = ThreadPoolExecutor(1, thread_name_prefix="grpc")
        return grpc.server(pool, interceptors=interceptors, options=_options(settings, streams, connections))

    def _register(self, server: grpc.Server, own: Sequence[Service], name: str) -> list[Lane]:
        """Registers a server's own services, health, and reflection of all; returns their lanes."""
        names = [service.name for service in own]
        health = HealthService([RERANK_SERVICE, *names], lambda: self.registry.serving)
        self._health.append(health)
        services = [*own, health.service(self._patience, self._edge, name)]
        services += reflection_services([*names, HEALTH_SERVICE], self._patience, self._edge, name)
        for service in services:
            # As generated code does: grpcio finds registered methods faster.
            handler = grpc.method_handlers_generic_handler(service.name, service.handlers)
            server.add_generic_rpc_handlers((handler,))
            server.add_registered_method_handlers(service.name, service.handlers)
            self._methods.update(service.methods())
            for observer in self._observers:
                observer.expect([f"{service.name}/{method}" for method in service.handlers])
        return [lane for service in services for lane in service.lanes]


def call_services(
    reranker: Reranker,
    patience: Patience,
    leaving: Callable[[], bool],
    edge: Edge,
    *,
    max_calls: int,
) -> list[Service]:
    """Makes the services that answer calls, in the lanes of a server that admits `max_calls` at once."""
    lanes = call_lanes(patience, edge, calls=max_calls)
    rerank = RerankServicer(reranker, reranker.registry, edge)
    tei = TeiServicer(reranker, edge, max_calls=max_calls)
    kserve = KServeServicer(reranker, leaving, edge)
    return [
        rerank_service(rerank, lanes),
        *tei_services(tei, lanes),
        kserve_service(kserve, lanes, edge),
    ]


def _options(settings: ServerSettings, streams: int, connections: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", LIMITS.message_bytes),
        ("grpc.max_send_message_length", LIMITS.reply_bytes),
        ("grpc.max_concurrent_streams", streams),
        # For each port of the server. Without a bound, connections take every open file.
        ("grpc.max_allowed_incoming_connections", open_files.connections(connections)),
        ("grpc.server_handshake_timeout_ms", round(HANDSHAKE_SECONDS * 1000)),
        ("grpc.max_connection_idle_ms", round(IDLE_SECONDS * 1000)),
        ("grpc.max_connection_age_ms", round(settings.connection_age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", round(settings.grace_seconds * 1000)),
        # On by default, and named here because the service needs it: ended calls that are still being
        # freed count as streams, and calls beyond the limit above are refused (RST_STREAM 7). Without it,
        # a flood of calls that are reset at once has gRPC drop every caller's calls at random.
        ("grpc.http.overload_protection", 1),
        # On by default, and named here because the admin port tells of it.
        ("grpc.enable_channelz", 1),
        # On by default: a second server on the same port would start without an error.
        ("grpc.so_reuseport", 0),
        # Clients that keep an idle connection alive through a NAT ping every 30 s or so; those that are
        # to notice in time that a server hangs, every 2 s while they wait for a call. Whoever pings more
        # often loses the connection at the third ping too many.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_500),
    ]
