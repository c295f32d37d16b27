"""The REST server in this process on a free port, and plain HTTP calls to it."""

import asyncio
import http.client
import json
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from rerank_grpc.config.settings import RestSettings
from rerank_grpc.http.server import HttpServer
from rerank_grpc.rest.server import RestServer
from rerank_grpc.telemetry.call_log import log_call
from rerank_grpc.telemetry.records import CallTracer, Sink
from rerank_grpc.types import Health

HOST = "127.0.0.1"


@dataclass
class Reply:
    """What came back of one HTTP call."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self.raw
        return json.loads(self.raw)


def call(port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
    """Sends one request over a connection of its own; a body that is not bytes goes as JSON."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        return read(connection)
    finally:
        connection.close()


def read(connection: http.client.HTTPConnection) -> Reply:
    """Reads the answer of a request that was sent."""
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, headers, response.read())


def post(port: int, path: str, body: Any, **headers: str) -> Reply:
    """Posts a body; `x_api_key=...` becomes the header x-api-key."""
    return call(port, "POST", path, body, {name.replace("_", "-"): text for name, text in headers.items()})


def get(port: int, path: str, **headers: str) -> Reply:
    """Gets a path; headers as in `post`."""
    return call(port, "GET", path, None, {name.replace("_", "-"): text for name, text in headers.items()})


ENVELOPE = struct.Struct(">BI")  # before each message of a Connect stream: flags, and the message's length


def enveloped(message: bytes, flags: int = 0) -> bytes:
    """Makes an envelope of a Connect stream."""
    return ENVELOPE.pack(flags, len(message)) + message


def opened(stream: bytes) -> tuple[list[bytes], dict[str, Any]]:
    """Takes a whole Connect stream apart: its messages, and what its end tells."""
    messages = list[bytes]()
    while stream:
        flags, length = ENVELOPE.unpack_from(stream)
        stream = stream[ENVELOPE.size :]
        message, stream = stream[:length], stream[length:]
        assert len(message) == length
        if flags == 2:
            assert not stream
            return messages, json.loads(message)
        assert flags == 0
        messages.append(message)
    raise AssertionError("the stream has no end")


class LoopClock:
    """The clock of asyncio's loops, which a test puts forward in place of waiting.

    Otherwise it stands, however long a busy machine takes for a step. The first server that stops has it run
    on, for all loops.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        self._stands_at: float | None = time.monotonic()
        stop = HttpServer.stop

        def stop_in_time(server: HttpServer, *given: float, **named: float) -> None:
            self._stands_at = None
            stop(server, *given, **named)

        monkeypatch.setattr(HttpServer, "stop", stop_in_time)
        monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda _: self._time())

    def _time(self) -> float:
        stands_at = self._stands_at
        return self._ahead + (time.monotonic() if stands_at is None else stands_at)

    def pass_by(self, seconds: float, port: int) -> None:
        """Lets time pass, and the REST server at a port notice it and all that was sent before."""
        call(port, "GET", "/docs")
        self._ahead += seconds
        call(port, "GET", "/docs")


@contextmanager
def rest_server(
    *ports: int | None,
    tokens: tuple[str, ...] = (),
    upstream_token: str | None = None,
    grace: float = 5,
    health: Callable[[], Health] | None = None,
    sinks: Sequence[Sink] = (log_call,),
    tracer: CallTracer | None = None,
    **settings: Any,
) -> Iterator[int]:
    """Runs a REST server for gRPC servers on these ports; yields its own port."""
    targets = tuple(f"{HOST}:{port}" for port in ports)
    access = RestSettings(targets=targets, access_tokens=tokens, upstream_token=upstream_token)
    own = replace(access, host=HOST, port=0, **settings)
    server = RestServer(own, health, sinks=sinks, tracer=tracer)
    server.start()
    try:
        yield server.port
    finally:
        server.stop(grace)
