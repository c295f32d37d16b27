"""The connections to a server: probes and calls beyond one connection's streams wait for nobody."""

import asyncio
import contextlib
import math
import re
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rerank_grpc.client import AsyncClient
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.rest import target
from rerank_grpc.rest.target import Target
from rerank_grpc.rest.upstream import Upstream
from rerank_grpc.server.server import RerankServer
from rerank_grpc.types import Health
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.client.scripted_server import ScriptedServer, hang, health, scored
from tests.rest.support import get, post, rest_server
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


@pytest.mark.clock
def test_200_calls_in_progress_keep_no_probe_and_no_further_call_waiting(
    held: tuple[HeldRunner, RerankServer],  # noqa: F811
) -> None:
    runner, server = held
    admitted = ServerSettings().max_calls
    begun = time.monotonic()
    with rest_server(server.port) as port, calling(port, CALLS) as connections:
        refused = answered(connections, CALLS - admitted)
        assert len(refused) == CALLS - admitted
        for connection in refused:
            answer = read(connection)
            assert answer.startswith(b"HTTP/1.1 429 ")
            found = re.search(rb"retry-after: (\d+)\r\n", answer)
            # At least a second; for the last of them, the stays after which so many have left.
            longest = (time.monotonic() - begun) * len(refused) / admitted
            assert found is not None
            assert 1 <= int(found[1]) <= max(1, math.ceil(longest))
        # No batch runs before the end, so an answer is one that has waited for no other call.
        for path in ("/health", "/ping", "/", "/v1/models"):
            assert get(port, path).status == 200
        for _ in range(9):
            assert post(port, "/v1/rerank", BODY).status == 429
        runner.let_all()
        for connection in set(connections) - set(refused):
            assert read(connection).startswith(b"HTTP/1.1 200 ")


def test_calls_beyond_every_connection_are_refused_by_the_rest_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(target, "STREAMS", 2)
    monkeypatch.setattr(target, "CALL_CONNECTIONS", 2)
    let = threading.Event()

    def wait(asked, _context):
        assert let.wait(WAIT)
        return scored(asked)

    server = ScriptedServer(otherwise=wait)
    server.start()
    try:
        with rest_server(server.port) as port, calling(port, 4) as connections:
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
    monkeypatch.setattr(target, "CALL_CONNECTIONS", 1)
    server = ScriptedServer()
    server.script.append(hang)
    server.start()
    try:
        with rest_server(server.port) as port:
            with calling(port, 1):
                assert server.called.wait(WAIT)
            wait_for(lambda: post(port, "/v1/rerank", BODY).status == 200)
    finally:
        server.stop()


@pytest.mark.usefixtures("patient_probes")
def test_90_probes_at_once_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    let, came = threading.Event(), list[Upstream]()
    own_health = Upstream.own_health

    async def counted(asked: Upstream) -> Health:
        came.append(asked)
        return await own_health(asked)

    def wait(_asked, _context):
        assert let.wait(WAIT)
        return health(pb.MODEL_STATE_READY)

    monkeypatch.setattr(Upstream, "own_health", counted)
    probe = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    server = ScriptedServer(otherwise=wait)
    server.start()
    try:
        with rest_server(server.port) as port, contextlib.ExitStack() as ends:
            waiting = [ends.enter_context(connect(port, probe)) for _ in range(90)]
            wait_for(lambda: len(came) == 90 and bool(server.calls))
            let.set()
            for connection in waiting:
                assert read(connection).startswith(b"HTTP/1.1 200 ")
            assert len(server.calls) == 1
            # Nothing is remembered.
            assert get(port, "/health").status == 200
            assert len(server.calls) == 2
    finally:
        let.set()
        server.stop()


def test_a_caller_that_leaves_takes_the_answer_from_no_other() -> None:
    async def run() -> None:
        let, asked = asyncio.Event(), list[AsyncClient]()

        async def ask(client: AsyncClient, **_options: Any) -> str:
            asked.append(client)
            await let.wait()
            return "answer"

        behind = Target("127.0.0.1:1", retries=0)
        first, second = (asyncio.create_task(behind.probe(ask, None)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        let.set()
        assert (await second, len(asked)) == ("answer", 1)
        await behind.close()

    asyncio.run(run())
