"""The connections to a server: probes and calls beyond one connection's streams wait for nobody."""

import contextlib
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Iterator

import pytest

from rerank_grpc.config import Settings
from rerank_grpc.rest import target
from rerank_grpc.server.app import RerankServer
from tests.client.scripted_server import ScriptedServer, hang, scored
from tests.rest.support import get, post, shim
from tests.rest.test_rest_connections import BODY, connect, held, request  # noqa: F401
from tests.support import WAIT, HeldRunner, wait_for

CALLS = 200
LAST = (BODY, "Connection: close", "X-Request-Timeout: 60")


@contextlib.contextmanager
def calling(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Sends so many calls at once, each over a connection of its own."""
    with contextlib.ExitStack() as ends:
        yield [ends.enter_context(connect(port, request(*LAST))) for _ in range(count)]


def answered(connections: list[socket.socket], count: int) -> list[socket.socket]:
    """Waits until so many connections have an answer to be read."""
    with selectors.DefaultSelector() as watch:
        for connection in connections:
            watch.register(connection, selectors.EVENT_READ)
        wait_for(lambda: len(watch.select(0)) >= count)
        return [key.fileobj for key, _ in watch.select(0)]  # type: ignore[misc]


def read(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_200_calls_in_progress_keep_no_probe_and_no_further_call_waiting(
    held: tuple[HeldRunner, RerankServer],  # noqa: F811
) -> None:
    runner, server = held
    admitted = Settings().max_calls
    with shim(server.port) as port, calling(port, CALLS) as connections:
        refused = answered(connections, CALLS - admitted)
        assert len(refused) == CALLS - admitted
        for connection in refused:
            answer = read(connection)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"retry-after: 1\r\n" in answer
        begin = time.monotonic()
        for path in ("/health", "/ping", "/", "/v1/models"):
            assert get(port, path).status == 200
        assert time.monotonic() - begin < 2
        seconds = []
        for _ in range(9):
            begin = time.monotonic()
            assert post(port, "/v1/rerank", BODY).status == 429
            seconds.append(time.monotonic() - begin)
        assert statistics.median(seconds) < 0.25
        runner.let_all()
        for connection in set(connections) - set(refused):
            assert read(connection).startswith(b"HTTP/1.1 200 ")


def test_calls_beyond_every_connection_are_refused_by_the_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "STREAMS", 2)
    monkeypatch.setattr(target, "MAX_CONNECTIONS", 2)
    let = threading.Event()

    def wait(asked, _context):
        assert let.wait(WAIT)
        return scored(asked)

    server = ScriptedServer(otherwise=wait)
    server.start()
    try:
        with shim(server.port) as port, calling(port, 4) as connections:
            wait_for(lambda: len(server.calls) == 4)
            reply = post(port, "/v1/rerank", BODY)
            assert (reply.status, reply.headers["retry-after"]) == (429, "1")
            assert len(server.calls) == 4
            let.set()
            for connection in connections:
                assert read(connection).startswith(b"HTTP/1.1 200 ")
            assert post(port, "/v1/rerank", BODY).status == 200
    finally:
        let.set()
        server.stop()


def test_callers_who_leave_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "STREAMS", 1)
    monkeypatch.setattr(target, "MAX_CONNECTIONS", 1)
    server = ScriptedServer()
    server.script.append(hang)
    server.start()
    try:
        with shim(server.port) as port:
            with calling(port, 1):
                assert server.called.wait(WAIT)
            wait_for(lambda: post(port, "/v1/rerank", BODY).status == 200)
    finally:
        server.stop()
