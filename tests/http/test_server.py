"""Any app on a port of its own: bound at once, one thread, an end in time."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from rerank_grpc.errors import ConfigurationError
from rerank_grpc.http.errors import in_text
from rerank_grpc.http.server import HttpServer
from tests.ports import free_port
from tests.rest.support import HOST, get
from tests.support import WAIT


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers everything with the same word."""
    await PlainTextResponse("hello")(scope, receive, send)


def server_of(
    app: Callable[[Scope, Receive, Send], object] = hello,
    host: str = HOST,
    port: int = 0,
    running: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
) -> HttpServer:
    """Makes a server of an app."""
    return HttpServer(
        app,  # type: ignore[arg-type]
        host,
        port,
        name="greetings",
        option="--greetings-port",
        most_connections=4,
        keep_alive_seconds=1,
        write_error=in_text,
        running=running,
    )


def test_callers_who_come_before_the_start_wait() -> None:
    server = server_of()
    with socket.create_connection((HOST, server.port), timeout=WAIT) as early:
        early.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        server.start()
        assert b"".join(iter(lambda: early.recv(1_024), b"")).endswith(b"hello")
    server.stop(1)


def test_a_server_that_never_started_gives_its_port_back() -> None:
    server = server_of(port=free_port())
    server.stop(1)
    again = server_of(port=server.port)
    again.start()
    assert get(again.port, "/").raw == b"hello"
    again.stop(1, end_seconds=WAIT)
    with pytest.raises(ConnectionRefusedError):
        get(again.port, "/")


@pytest.mark.parametrize("host", [HOST, "203.0.113.1"])
def test_a_port_that_cannot_be_had_is_named_with_the_option_for_another(host: str) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        told = rf"^cannot listen on {host}:{port} for greetings: .*--greetings-port \(or off\)"
        with pytest.raises(ConfigurationError, match=told):
            server_of(host=host, port=port)


def test_what_the_app_needs_runs_in_its_loop_from_before_the_first_call_to_after_the_last() -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        seen.append(f"in {threading.current_thread().name}")
        await asyncio.sleep(0)
        yield
        seen.append("out")

    server = server_of(running=running)
    assert seen == []
    server.start()
    assert seen == ["in greetings"]
    assert get(server.port, "/").raw == b"hello"
    server.stop(1, end_seconds=WAIT)
    assert seen == ["in greetings", "out"]


def test_what_cannot_run_is_one_line_in_the_log_and_no_hanging_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def running() -> AbstractAsyncContextManager[None]:
        raise RuntimeError("canary")

    server = server_of(running=running)
    server.start()
    server.stop(1)
    (record,) = caplog.records
    assert record.levelno == logging.CRITICAL
    assert "the server of greetings has ended: RuntimeError" in record.getMessage()
    assert "canary" not in record.getMessage()


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 70_000], ids=["none", "huge"]
)
def test_what_is_no_request_is_answered_as_the_app_writes_errors(sent: bytes) -> None:
    server = server_of()
    server.start()
    with socket.create_connection((HOST, server.port), timeout=WAIT) as caller:
        caller.sendall(sent)
        head, _, body = b"".join(iter(lambda: caller.recv(65_536), b"")).partition(b"\r\n\r\n")
    server.stop(1)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: text/plain" in head
    assert body == b"this is no HTTP request that can be read\n"


@pytest.mark.clock
@pytest.mark.parametrize("grace", [0, 20])
def test_a_call_inside_has_the_grace_and_none_without_one(grace: float) -> None:
    inside, let = threading.Event(), threading.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        inside.set()
        while not let.is_set():
            await asyncio.sleep(0.01)
        await hello(scope, receive, send)

    server = server_of(slow)
    server.start()
    with socket.create_connection((HOST, server.port), timeout=WAIT) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert inside.wait(WAIT)
        if grace:
            threading.Timer(0.2, let.set).start()
        begin = time.monotonic()
        server.stop(grace, end_seconds=1.0)
        assert time.monotonic() - begin < 5
        assert bool(caller.recv(1_024)) == bool(grace)
    let.set()
