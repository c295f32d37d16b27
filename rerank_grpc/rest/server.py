"""Runs the app on uvicorn, in a thread of any process."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
from collections.abc import Callable
from functools import partial

import uvicorn

from rerank_grpc.config import files
from rerank_grpc.config.settings import RestSettings
from rerank_grpc.errors import ConfigurationError, describe
from rerank_grpc.rest.app import build_app
from rerank_grpc.rest.protocol import Connections, PatientProtocol
from rerank_grpc.rest.upstream import Upstream
from rerank_grpc.types import Health

log = logging.getLogger(__name__)

BACKLOG = 512
# asyncio accepts a whole backlog in one round of its loop, and the protocol makes room only afterwards.
# A larger round could use up the process's files.
ACCEPTS_PER_ROUND = 16
# The most connections that callers may hold, if the limit of open files allows them.
MAX_CONNECTIONS = 4_096
# The time after the grace in which channels and sockets are closed.
END_SECONDS = 2.0
# The time in which callers that were cut off at the end of the grace are told.
REFUSAL_SECONDS = 0.5


class RestServer:
    """REST on a port: bound at once, served from `start` to `stop`.

    In the gRPC server's process `health` tells the default model's: a probe's gRPC call may fail while the
    model is well. Raises ConfigurationError if the port cannot be bound.
    """

    def __init__(self, settings: RestSettings, health: Callable[[], Health] | None = None) -> None:
        assert settings.port is not None
        self._upstream = Upstream(settings.targets, token=settings.upstream_token)
        self._app = build_app(settings, self._upstream, health)
        self._keep_alive = math.ceil(settings.keep_alive)
        self._connections = Connections(files.connections(MAX_CONNECTIONS))
        self._socket = _bind(settings.host, settings.port)
        self.port: int = self._socket.getsockname()[1]
        self._server: _Server | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rest", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._started.wait()

    def stop(self, grace_seconds: float) -> None:
        """Takes no more callers, and gives those inside the grace to finish."""
        if not self._thread.is_alive() or self._server is None:
            self._socket.close()
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_seconds))
        self._server.should_exit = True
        self._thread.join(grace_seconds + END_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            log.critical("the REST server has ended: %s", describe(error))
        finally:
            self._started.set()

    async def _serve(self) -> None:
        config = uvicorn.Config(
            self._app,
            http=partial(PatientProtocol, self._connections),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            # Logging is the process's; a request's path and address are not logged.
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=self._keep_alive,
            h11_max_incomplete_event_size=32_768,
            backlog=ACCEPTS_PER_ROUND,
        )
        self._server = _Server(config)
        await self._upstream.start()
        self._started.set()
        try:
            await self._server.serve(sockets=[self._socket])
            if tasks := self._server.server_state.tasks:
                await asyncio.wait(tuple(tasks), timeout=REFUSAL_SECONDS)
        finally:
            await self._upstream.close()


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts with the full backlog, which uvicorn has cut down to the accepts of one round."""
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(BACKLOG)


def _with_kind(record: logging.LogRecord) -> bool:
    """Gives a line of uvicorn a kind, by which the log bounds it: callers cause some at will."""
    record.kind = f"uvicorn {record.msg}"
    return True


logging.getLogger("uvicorn.error").addFilter(_with_kind)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        # Callers who come before uvicorn runs then wait, and are not refused.
        listening = socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both)
        # Connections inherit it. Without it, the body of an answer waits until the caller's kernel has
        # acknowledged the head, for 40 ms on a connection that is used again.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port} for REST: the port is taken or the address is not this "
            "machine's; choose another with --rest-port (or off), or stop what listens there"
        ) from error
