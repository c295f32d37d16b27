"""Connections that idle, that offer another protocol, that send slowly."""

import http.client
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from rerank_grpc.http import protocol
from rerank_grpc.server.server import RerankServer
from tests.rest.support import HOST, LoopClock, Reply, get, post, read, rest_server
from tests.rest.test_connections import is_closed
from tests.rest.test_rest_connections import BODY, connect, request, until
from tests.rest.test_rest_process import Process
from tests.support import CountingRunner, call_lines, serving

HEAD = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[RerankServer]:
    with serving(runner=CountingRunner()) as server:
        yield server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> LoopClock:
    return LoopClock(monkeypatch)


@pytest.fixture
def port(server: RerankServer, clock: LoopClock) -> Iterator[int]:
    with rest_server(server.port) as port:
        yield port


@contextmanager
def used_connection(port: int) -> Iterator[http.client.HTTPConnection]:
    """Makes a call over a connection that stays."""
    with closing(http.client.HTTPConnection(HOST, port, timeout=30)) as connection:
        ask(connection)
        connection.auto_open = 0
        yield connection


def ask(connection: http.client.HTTPConnection) -> None:
    """Makes a call; raises an error if the connection has been closed."""
    connection.request("POST", "/v1/rerank", json.dumps(BODY))
    assert read(connection).status == 200


def answer_on(connection: socket.socket) -> Reply:
    """Reads the next answer."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, headers, response.read())


@pytest.mark.case(3)
@pytest.mark.parametrize("seconds", [12, 60, 90, 119.5])
def test_an_idle_connection_outlives_the_pools_of_callers(
    port: int, clock: LoopClock, seconds: float
) -> None:
    with used_connection(port) as connection:
        clock.pass_by(seconds, port)
        ask(connection)
        clock.pass_by(122, port)
        assert is_closed(connection.sock)


@pytest.mark.case(3)
@pytest.mark.parametrize(("keep_alive", "told"), [(120.0, 120), (600.0, 600), (5.0, 5), (0.5, 1)])
def test_an_answer_tells_how_long_its_connection_stays(
    server: RerankServer, clock: LoopClock, keep_alive: float, told: int
) -> None:
    with rest_server(server.port, keep_alive=keep_alive) as port:
        assert get(port, "/health").headers["keep-alive"] == f"timeout={told}"
        assert get(port, "/v3").headers["keep-alive"] == f"timeout={told}"
        for headers in ({"connection": "close"}, {"connection": "TE, Close"}):
            assert "keep-alive" not in get(port, "/health", **headers).headers
        with connect(port, b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n") as old:
            headers = answer_on(old).headers
            assert (headers["connection"], headers.get("keep-alive")) == ("close", None)
        with used_connection(port) as connection:
            clock.pass_by(told + 0.5, port)  # a moment longer, for a call that is on its way
            assert not is_closed(connection.sock)
            clock.pass_by(1, port)
            assert is_closed(connection.sock)


@pytest.mark.case(3)
def test_a_connection_that_never_asked_anything_is_not_kept(port: int, clock: LoopClock) -> None:
    with connect(port) as silent:
        clock.pass_by(protocol.HEAD_SECONDS - 0.5, port)
        assert not is_closed(silent)
        clock.pass_by(1, port)
        assert is_closed(silent)


@pytest.mark.case(13)
def test_an_offer_of_another_protocol_is_declined_in_silence(server: RerankServer) -> None:
    process = Process(f"{HOST}:{server.port}")
    settings = "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"
    offers = [
        ("Connection: Upgrade, HTTP2-Settings", settings, "Upgrade: h2c"),
        ("connection: upgrade", "upgrade: H2C"),
        ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
        ("Connection: Upgrade", "Upgrade: TLS/1.2, h2c"),
    ]
    try:
        for offer in offers:
            with connect(process.port, request(BODY, *offer)) as connection:
                assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
                connection.sendall(request(BODY, *offer) + request(BODY, "Connection: close"))
                answers = b"".join(iter(lambda: connection.recv(65_536), b""))
                assert answers.count(b"HTTP/1.1 200 ") == 2
        assert get(process.port, "/health", connection="Upgrade", upgrade="h2c").status == 200
    finally:
        assert process.stop() == 0
    assert not [line for line in process.log if "WARNING" in line or "pgrade" in line]


@pytest.mark.case(17)
@pytest.mark.parametrize(
    ("path", "message_of", "name"),
    [
        ("/v1/rerank", lambda told: told["message"], "superset"),
        ("/tei/rerank", lambda told: told["error"], "tei"),
    ],
)
def test_a_body_that_stops_is_408_and_logged_so(
    port: int, clock: LoopClock, caplog: pytest.LogCaptureFixture, path: str, message_of: Any, name: str
) -> None:
    caplog.set_level(logging.INFO)
    with connect(port, request(BODY, path=path)[:-1]) as slow:
        clock.pass_by(protocol.NO_PROGRESS_SECONDS + 0.5, port)
        clock.pass_by(protocol.LINGER_SECONDS + 0.5, port)
        reply = answer_on(slow)
    assert (reply.status, reply.headers["connection"]) == (408, "close")
    assert (
        message_of(reply.json)
        == "nothing came of the body for 5 s: send it faster, or fewer documents at once"
    )
    until(lambda: [told for told in call_lines(caplog) if " 408 " in told])
    (told,) = (told for told in call_lines(caplog) if " 408 " in told)
    assert f" dialect={name} " in f"{told} "
    assert " 499 " not in caplog.text
    assert post(port, "/v1/rerank", BODY).status == 200


@pytest.mark.case(17)
def test_a_body_slower_than_64_kib_a_second_is_408(port: int, clock: LoopClock) -> None:
    with connect(port, HEAD + b"Content-Length: 1000000\r\n\r\n") as slow:
        for _ in range(3):
            slow.sendall(b" " * 1_000)
            clock.pass_by(3.5, port)
        # The answer is there before the socket is given up, also for a caller that goes on sending.
        slow.sendall(b" " * 500_000)
        reply = answer_on(slow)
        clock.pass_by(protocol.LINGER_SECONDS + 0.5, port)
        assert is_closed(slow)
    assert reply.status == 408
    assert reply.json["message"].startswith("the body took longer than 10 s, at less than 64 KiB/s: ")


@pytest.mark.case(17)
def test_a_body_that_is_fast_enough_may_take_long(port: int, clock: LoopClock) -> None:
    body = json.dumps(BODY).encode()
    rest = b" " * (2_000_000 - len(body))
    with connect(port, HEAD + b"Connection: close\r\nContent-Length: 2000000\r\n\r\n") as slow:
        for begin in range(0, len(rest), 300_000):
            slow.sendall(rest[begin : begin + 300_000])
            clock.pass_by(4, port)
        slow.sendall(body)
        assert answer_on(slow).status == 200


@pytest.mark.case(17)
def test_a_refused_body_that_ends_leaves_its_connection_in_peace(port: int, clock: LoopClock) -> None:
    sent = request(BODY, "Content-Encoding: gzip")
    with connect(port, sent[:-1]) as slow:
        assert answer_on(slow).status == 415
        slow.sendall(sent[-1:] + request(BODY, "Connection: close"))
        assert answer_on(slow).status == 200


@pytest.mark.case(17)
@pytest.mark.parametrize("asked", ["Connection: close", "Connection: keep-alive"])
def test_a_refused_body_that_does_not_end_has_two_seconds(port: int, clock: LoopClock, asked: str) -> None:
    with connect(port, request(BODY, "Content-Encoding: gzip", asked)[:-1]) as slow:
        reply = answer_on(slow)
        assert (reply.status, "keep-alive" in reply.headers) == (415, False)
        clock.pass_by(protocol.LINGER_SECONDS - 0.5, port)
        assert not is_closed(slow)
        clock.pass_by(1, port)
        assert is_closed(slow)


@pytest.mark.case(17)
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_head_that_does_not_end_is_408(port: int, clock: LoopClock, used: bool) -> None:
    with connect(port, request(BODY) if used else b"") as slow:
        if used:
            assert answer_on(slow).status == 200
        slow.sendall(HEAD)
        clock.pass_by(protocol.HEAD_SECONDS + 0.5, port)
        slow.sendall(b"X: y\r\n\r\n")
        reply = answer_on(slow)
        assert (reply.status, reply.headers["connection"]) == (408, "close")
        assert reply.json["error"]["code"] == "request_timeout"
        assert slow.recv(1) == b""
