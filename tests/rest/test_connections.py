"""How many connections callers hold: the oldest that is idle makes room, one being answered stays."""

import contextlib
import http.client
import select
import socket
from collections.abc import Iterable, Iterator

import pytest

from rerank_grpc.client import Client
from rerank_grpc.rest import server as rest
from rerank_grpc.server.server import RerankServer
from tests.rest.support import HOST, LoopClock, get, post, read, rest_server
from tests.rest.test_rest_connections import BODY, connect, held, request  # noqa: F401
from tests.support import WAIT, HeldRunner, wait_for

BOUND = 8
TOKENS = 5  # of a query and a document, of which a batch then holds one
HEAD = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "MAX_CONNECTIONS", BOUND)
    LoopClock(monkeypatch)  # so that no connection goes by its time


@contextlib.contextmanager
def holding(port: int, sent: Iterable[bytes]) -> Iterator[list[socket.socket]]:
    """Opens one connection after another, and sends no more than this on each."""
    with contextlib.ExitStack() as ends:
        yield [ends.enter_context(connect(port, part)) for part in sent]


def is_closed(connection: socket.socket) -> bool:
    """Tells whether the peer has closed; an answer would count as open."""
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("sent", [b"", HEAD], ids=["silent", "half a head"])
def test_the_oldest_idle_connections_make_room(scripted: RerankServer, sent: bytes) -> None:
    with rest_server(scripted.port) as port, holding(port, [sent] * 5 * BOUND) as idle:
        wait_for(lambda: all(map(is_closed, idle[: 4 * BOUND])))
        assert not any(map(is_closed, idle[4 * BOUND :]))
        assert get(port, "/health").status == 200
        assert post(port, "/v1/rerank", BODY).status == 200


def test_the_connection_that_was_used_last_is_kept(scripted: RerankServer) -> None:
    with rest_server(scripted.port) as port, holding(port, [b""] * BOUND) as idle:
        used = http.client.HTTPConnection(HOST, port)
        used.sock = idle[0]
        used.request("GET", "/health")
        assert read(used).status == 200
        with holding(port, [b""] * (BOUND - 1)) as further:
            wait_for(lambda: all(map(is_closed, idle[1:])))
            assert not any(map(is_closed, [idle[0], *further]))


def test_a_half_sent_body_makes_room_where_nothing_is_idle(scripted: RerankServer) -> None:
    begun = request(BODY, "Expect: 100-continue")[:-1]
    with rest_server(scripted.port) as port, holding(port, [begun] * BOUND) as half:
        assert all(connection.recv(1_024).startswith(b"HTTP/1.1 100 ") for connection in half)
        assert post(port, "/v1/rerank", BODY).status == 200
        wait_for(lambda: is_closed(half[0]))
        assert not is_closed(half[-1])


def test_unread_answers_make_room_where_nothing_is_idle(scripted: RerankServer) -> None:
    script = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"

    def gets_in(port: int) -> bool:
        try:
            return post(port, "/v1/rerank", BODY).status == 200
        except ConnectionError:
            return False

    with rest_server(scripted.port) as port, holding(port, [script * 20] * BOUND):
        # At first the answers are being sent, which nothing may end.
        wait_for(lambda: gets_in(port))


def test_what_is_being_answered_is_never_closed(held: tuple[HeldRunner, RerankServer]) -> None:  # noqa: F811
    runner, server = held
    bodies = [{"query": "q", "documents": [f"document {number}"]} for number in range(BOUND)]
    calls = [request(body, "Connection: close") for body in bodies]
    with rest_server(server.port) as port, holding(port, calls) as waiting:
        with Client(f"{HOST}:{server.port}") as client:
            wait_for(lambda: client.health().queue_tokens == (BOUND - 1) * TOKENS)
        for _ in range(3 * BOUND):
            with connect(port) as further:
                further.settimeout(WAIT)
                with contextlib.suppress(ConnectionResetError):
                    assert further.recv(1) == b""
        runner.let_all()
        for connection in waiting:
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))  # noqa: B023
            assert answer.startswith(b"HTTP/1.1 200 ")
        assert post(port, "/v1/rerank", BODY).status == 200
