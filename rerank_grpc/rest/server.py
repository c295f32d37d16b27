"""REST on a port of any process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import orjson

from rerank_grpc.access.accepted import AccessList
from rerank_grpc.access.tokens import SentToken
from rerank_grpc.config.settings import RestSettings
from rerank_grpc.http.errors import HttpError
from rerank_grpc.http.server import HttpServer
from rerank_grpc.rest.app import build_app
from rerank_grpc.rest.errors import common_body, problem_of
from rerank_grpc.rest.recorder import Recorder
from rerank_grpc.rest.upstream import Upstream
from rerank_grpc.telemetry.call_log import log_call
from rerank_grpc.telemetry.records import CallTracer, Sink
from rerank_grpc.tls.serving import Certificates
from rerank_grpc.types import Health

# The most connections that callers may hold, if the limit of open files allows them.
MAX_CONNECTIONS = 4_096


class RestServer:
    """REST on a port: bound at once, served from `start` to `stop`.

    In the gRPC server's process `health` tells the default model's, as a probe's gRPC call may fail while
    the model is well, `configured_name` the model that a name stands for, "" for an unknown one, and
    `access` is that server's list of callers, and `certificates` what it shows, None for plain HTTP; else
    they are made of the settings, and followed while REST is served. `sinks` get the record of each call,
    and `tracer` begins the span of each that is passed on. Raises ConfigurationError if the port cannot
    be bound.
    """

    def __init__(
        self,
        settings: RestSettings,
        health: Callable[[], Health] | None = None,
        *,
        access: AccessList | None = None,
        certificates: Certificates | None = None,
        sinks: Sequence[Sink] = (log_call,),
        tracer: CallTracer | None = None,
        configured_name: Callable[[str], str] | None = None,
    ) -> None:
        assert settings.port is not None
        own = SentToken(settings.upstream_token, settings.upstream_token_file)
        self._upstream = Upstream(
            settings.targets, token=own, alone=access is None, tls=settings.upstream_tls
        )
        self._followed: list[SentToken | AccessList | Certificates] = [own]
        if certificates is None and settings.tls:
            certificates = Certificates(settings.tls)
            self._followed.append(certificates)
        self.certificates = certificates
        if access is None:
            known = certificates is not None and certificates.names_callers
            access = AccessList(settings.access_tokens, settings.token_file, by_certificate=known)
            # The servers behind do not know this process's callers: it calls them by its own token.
            access.passing = lambda _name: own.value
            self._followed.append(access)
        recorder = Recorder(sinks, tracer, configured_name)
        self._server = HttpServer(
            build_app(settings, self._upstream, access, health, recorder),
            settings.host,
            settings.port,
            name="REST",
            option="--rest-port",
            most_connections=MAX_CONNECTIONS,
            keep_alive_seconds=settings.keep_alive,
            write_error=partial(_in_json, recorder),
            running=self._connected,
            certificates=certificates,
        )
        self.port = self._server.port

    def start(self) -> None:
        for each in self._followed:
            each.watch()
        self._server.start()

    def stop(self, grace_seconds: float) -> None:
        """Takes no more callers, and gives those inside the grace to finish."""
        self._server.stop(grace_seconds)
        for each in self._followed:
            each.close()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        await self._upstream.start()
        try:
            yield
        finally:
            await self._upstream.close()


def _in_json(recorder: Recorder, error: HttpError) -> tuple[bytes, bytes]:
    """Records an error that comes before the app, and writes it in the shape of all others."""
    recorder.refuse(error.status)
    _, content = common_body(problem_of(error))
    return b"application/json", orjson.dumps(content)
