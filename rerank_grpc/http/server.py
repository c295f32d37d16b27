"""Runs one app on uvicorn, in a thread of any process."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from rerank_grpc.errors import ConfigurationError, describe
from rerank_grpc.files import open_files
from rerank_grpc.files.sockets import OwnSocket, making_room, socket_path
from rerank_grpc.http.errors import Writer
from rerank_grpc.http.protocol import HEAD_BYTES, Connections, PatientProtocol
from rerank_grpc.http.tls import Handshake
from rerank_grpc.tls.serving import Certificates

log = logging.getLogger(__name__)

BACKLOG = 512
# asyncio accepts a whole backlog in one round of its loop, and the protocol makes room only afterwards.
# A larger round could use up the process's files.
ACCEPTS_PER_ROUND = 16
# The time after the grace in which channels and sockets are closed.
END_SECONDS = 2.0
# The time in which callers that were cut off at the end of the grace are told.
REFUSAL_SECONDS = 0.5


class HttpServer:
    """One app on a port: bound at once, served from `start` to `stop` on one thread.

    Args:
        app: an ASGI app.
        host, port: where to listen; port 0 is any free one, and a Unix socket has none: 0 in `port` too.
        name: how messages and the thread call it.
        option: the option that chooses another port, or "off".
        most_connections: the bound of its connections, if the limit of open files allows so many.
        keep_alive_seconds: how long a connection without a request stays open.
        write_error: writes what is answered to bytes that are no request.
        spares_answers: whether a connection whose request is being answered outlives a new one.
        certificates: what is shown to callers, over TLS; None for plain HTTP.
        running: entered in the server's loop before the first request, left after the last one.

    Raises:
        ConfigurationError: the port cannot be bound.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        name: str,
        option: str,
        most_connections: int,
        keep_alive_seconds: float,
        write_error: Writer,
        spares_answers: bool = True,
        certificates: Certificates | None = None,
        running: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> None:
        self._app, self._name, self._running = app, name, running
        self._keep_alive = math.ceil(keep_alive_seconds)
        self._connections = Connections(
            open_files.connections(most_connections), spares_answers=spares_answers
        )
        self._protocol = partial(PatientProtocol, self._connections, write_error)
        # A Unix socket is plain: only this machine's users reach it, and its file says which.
        path = socket_path(host)
        self._certificates = certificates if path is None else None
        self._file: OwnSocket | None = None
        if path is None:
            self._socket = _bind(host, port, name, option)
            self.port: int = self._socket.getsockname()[1]
        else:
            self._socket, self._file = _bind_path(path, name)
            self.port = 0
        self._server: _Server | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._started.wait()

    def stop(self, grace_seconds: float, end_seconds: float = END_SECONDS) -> None:
        """Takes no more callers, and gives those inside the grace to finish; a grace of 0 cuts them off.

        Waits `end_seconds` longer at most.
        """
        if self._file is not None:
            self._file.remove()
        if not self._thread.is_alive() or self._server is None:
            self._socket.close()
            return
        seconds = grace_seconds or 1.0  # without a grace `force_exit` is all that counts
        self._server.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]  # any number
        self._server.force_exit = not grace_seconds
        self._server.should_exit = True
        self._thread.join(grace_seconds + end_seconds)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            log.critical("the server of %s has ended: %s", self._name, describe(error))
        finally:
            self._started.set()

    def _make_protocol(self, **options: Any) -> asyncio.Protocol:
        """Makes a connection's first protocol; the options are uvicorn's."""
        make = partial(self._protocol, **options)
        if self._certificates is None:
            return make()
        return Handshake(self._certificates, self._connections, make, asyncio.get_running_loop())

    async def _serve(self) -> None:
        config = uvicorn.Config(
            self._app,
            http=self._make_protocol,  # type: ignore[arg-type]
            loop="asyncio",  # whatever else is installed: the protocol makes room in a round of its loop
            ws="none",
            lifespan="off",
            # Logging is the process's; a request's path and address are not logged.
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=self._keep_alive,
            h11_max_incomplete_event_size=HEAD_BYTES,
            backlog=ACCEPTS_PER_ROUND,
        )
        self._server = _Server(config)
        async with self._running():
            self._started.set()
            await self._server.serve(sockets=[self._socket])
            if tasks := self._server.server_state.tasks:
                await asyncio.wait(tuple(tasks), timeout=REFUSAL_SECONDS)
        self._connections.close_all()


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


def _bind_path(path: Path, name: str) -> tuple[socket.socket, OwnSocket]:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with making_room(path):
            listening.bind(os.fspath(path))
        listening.listen(BACKLOG)
        return listening, OwnSocket(path)
    except ValueError as error:
        listening.close()
        raise ConfigurationError(f"cannot listen on unix:{path} for {name}: {error}") from None


def _bind(host: str, port: int, name: str, option: str) -> socket.socket:
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
            f"cannot listen on {host}:{port} for {name}: the port is taken or the address is not this "
            f"machine's; choose another with {option} (or off), or stop what listens there"
        ) from error
