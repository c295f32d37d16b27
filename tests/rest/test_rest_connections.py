"""Callers who leave, who are slow, who send too much; deadlines, and servers that come and go."""

import asyncio
import contextlib
import gc
import json
import re
import selectors
import socket
import statistics
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from rerank_grpc.client import Client
from rerank_grpc.config.settings import EngineSettings, ServerSettings
from rerank_grpc.http import protocol
from rerank_grpc.http.protocol import PatientProtocol
from rerank_grpc.server.server import RerankServer
from tests.ports import free_port
from tests.rest.support import HOST, LoopClock, Reply, post, rest_server
from tests.support import LONG, WAIT, CountingRunner, HeldRunner, ScriptedLoader, serving

BODY = {"query": "q", "documents": ["d"]}


def connect(port: int, sent: bytes = b"") -> socket.socket:
    """Opens a connection and sends something."""
    connection = socket.create_connection((HOST, port), timeout=WAIT)
    connection.sendall(sent)
    return connection


def socket_of(key: selectors.SelectorKey) -> socket.socket:
    assert isinstance(key.fileobj, socket.socket)
    return key.fileobj


def request(body: Any, *headers: str, path: str = "/v1/rerank") -> bytes:
    """Writes a request's bytes."""
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(data)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + data


def refuses(port: int) -> bool:
    """Tells whether nobody listens at a port any more."""
    try:
        connect(port).close()
    except ConnectionRefusedError:
        return True
    except ConnectionError:  # it was on its way as the port was closed
        pass
    return False


def until(condition: Callable[[], object], seconds: float = WAIT) -> None:
    """Waits for something that happens elsewhere."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        threading.Event().wait(0.005)


@pytest.fixture
def held() -> Iterator[tuple[HeldRunner, RerankServer]]:
    """A server whose batches hold one document each, and run when the test lets them."""
    runner = HeldRunner()
    settings = replace(ServerSettings(), engine=EngineSettings(max_batch_tokens=8))
    with serving(settings, runner=runner) as server:
        yield runner, server


def test_a_caller_who_leaves_costs_at_most_one_further_batch(held) -> None:
    runner, server = held
    with rest_server(server.port) as port, Client(f"{HOST}:{server.port}") as client:
        connection = connect(port, request({"query": "q", "documents": [f"d{n}" for n in range(500)]}))
        runner.await_batch()
        assert client.health().queue_tokens > 0
        connection.close()
        until(lambda: client.health().queue_tokens == 0)
        neighbour: list[Reply] = []
        asking = threading.Thread(target=lambda: neighbour.append(post(port, "/v1/rerank", BODY)))
        asking.start()
        runner.let_all()
        asking.join(WAIT)
        assert neighbour[0].status == 200
        # The batch that ran when the caller left, at most one more, and the neighbour's own.
        assert len(runner.batches) <= 3


def test_the_callers_time_becomes_the_deadline(held) -> None:
    runner, server = held
    with rest_server(server.port) as port:
        for headers, path, kind in ((("X-Request-Timeout: 0.3",), "/v1/rerank", "error"),):
            begin = time.monotonic()
            with connect(port, request(BODY, *headers, "Connection: close", path=path)) as connection:
                answer = b"".join(iter(lambda: connection.recv(65_536), b""))
            assert answer.startswith(b"HTTP/1.1 504 ")
            assert f'"{kind}"'.encode() in answer
            assert time.monotonic() - begin > 0.25
    with rest_server(server.port, timeout=0.2) as port:
        assert post(port, "/v1/rerank", BODY).status == 504
    assert runner.sequences == 0


def test_a_rest_server_that_stops_answers_those_inside(held) -> None:
    runner, server = held
    replies: list[Reply] = []
    with rest_server(server.port, grace=WAIT) as port:
        asking = threading.Thread(target=lambda: replies.append(post(port, "/v1/rerank", BODY)))
        asking.start()
        runner.await_batch()

        def let_all_once_it_stops() -> None:
            until(lambda: refuses(port))
            runner.let_all()

        ending = threading.Thread(target=let_all_once_it_stops)
        ending.start()
    for thread in (asking, ending):
        thread.join(WAIT)
    assert replies[0].status == 200
    assert replies[0].headers["connection"] == "close"
    assert "keep-alive" not in replies[0].headers


def test_refused_connections_keep_no_server_from_stopping(
    scripted: RerankServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HEAD", "BODY", "NO_PROGRESS", "WRITE"):  # only the end of what is thrown away comes in time
        monkeypatch.setattr(protocol, f"{name}_SECONDS", LONG)
    begun = request(BODY, "Content-Encoding: gzip")[:-1]
    with contextlib.ExitStack() as ends:
        with rest_server(scripted.port, grace=WAIT) as port:
            for sent in (b"garbage\r\n\r\n", begun, begun + b"\r\n" * 10):
                lingering = ends.enter_context(connect(port, sent))
                assert lingering.recv(65_536).startswith(b"HTTP/1.1 4")
        # Not the whole log: grpc.aio's one poller of the process may complain of earlier tests' closed loops.
        errors = [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
        assert not [record for record in errors if "PollerCompletionQueue" not in record.getMessage()]


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [("/v1/rerank", BODY, "message"), ("/tei/rerank", {"query": "q", "texts": ["d"]}, "error")],
)
def test_who_is_cut_off_by_the_end_of_the_grace_is_told_to_come_back(
    held, caplog: pytest.LogCaptureFixture, path: str, body: Any, key: str
) -> None:
    runner, server = held
    with rest_server(server.port, grace=0.2) as port:
        waiting = connect(port, request(body, path=path))
        sending = connect(port, request(body, path=path)[:-1])
        runner.await_batch()
    for connection in (waiting, sending):
        with connection, connection.makefile("rb") as answer:
            head, _, told = answer.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head
        assert json.loads(told)[key] == "the server is stopping"
    # Not the whole log: grpc.aio's one poller of the process may complain of earlier tests' closed loops.
    assert not [record for record in caplog.records if record.name.startswith("uvicorn") and record.exc_info]
    assert "Exception in ASGI" not in caplog.text


def test_one_connection_takes_many_requests_also_ahead_of_their_answers(port: int) -> None:
    with connect(port, request(BODY) * 3 + request(BODY, "Connection: close")) as connection:
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert len(re.findall(rb"HTTP/1\.1 200 ", answer)) == 4


def test_the_body_of_an_answer_does_not_wait_for_its_head_to_be_acknowledged(
    scripted: RerankServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = PatientProtocol.connection_made
    no_delay: list[int] = []

    def spy(self: PatientProtocol, transport: asyncio.Transport) -> None:
        made(self, transport)
        accepted = transport.get_extra_info("socket")
        no_delay.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(PatientProtocol, "connection_made", spy)
    with rest_server(scripted.port) as port:
        assert post(port, "/v1/rerank", BODY).status == 200
    assert no_delay
    assert all(no_delay)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
        b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 70_000,
    ],
)
def test_what_is_no_http_gets_json(port: int, sent: bytes) -> None:
    with connect(port, sent) as connection:
        head, _, body = b"".join(iter(lambda: connection.recv(65_536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "bad_request"


@pytest.mark.parametrize("chunked", [False, True], ids=["told", "chunked"])
def test_too_large_a_body_is_413_before_it_is_read(port: int, chunked: bool) -> None:
    head = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\n"
    block = b" " * (1 << 20)
    if chunked:
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        block = b"100000\r\n" + block + b"\r\n"
    else:
        head += b"Content-Length: 200000000\r\n\r\n"
    with connect(port, head) as connection:
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 200:
                connection.sendall(block)
                sent += 1
        answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert sent < 60
    assert post(port, "/v1/rerank", BODY).status == 200


@pytest.mark.clock
def test_200_slow_callers_lose_their_sockets_and_take_nobodys_time(port: int) -> None:
    def one() -> float:
        begin = time.monotonic()
        assert post(port, "/v1/rerank", BODY).status == 200
        return time.monotonic() - begin

    alone = [one() for _ in range(200)]
    head = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\n"
    # Silent, slow in the head, slow in the body; each 10 s after it began at the latest.
    begins = [b"", head, head + b"Content-Length: 1000\r\n\r\n"]
    watch = selectors.DefaultSelector()
    begin = time.monotonic()
    for number in range(200):
        watch.register(connect(port, begins[number % 3]), selectors.EVENT_READ, number % 3)
    beside: list[float] = []
    while watch.get_map():
        beside += [one() for _ in range(10)]
        for key, _ in watch.select(0.2):
            watch.unregister(key.fileobj)
            socket_of(key).close()
        for key in list(watch.get_map().values()):
            if key.data:
                try:
                    socket_of(key).send(b"x")
                except OSError:
                    watch.unregister(key.fileobj)
                    socket_of(key).close()
        assert time.monotonic() - begin < 30, f"{len(watch.get_map())} sockets are still open"
    watch.close()
    # Caller and servers share this process and machine, whose noise is the larger below that.
    assert statistics.median(beside) <= max(3 * statistics.median(alone), 0.25)


def test_a_body_of_which_nothing_comes_loses_its_socket(
    scripted: RerankServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = LoopClock(monkeypatch)
    # As much time as a body of 12 MiB has, were it for its rate alone.
    monkeypatch.setattr(protocol, "BODY_SECONDS", 202.0)
    with rest_server(scripted.port) as port, connect(port, request(BODY)[:-1]) as stalled:
        clock.pass_by(protocol.NO_PROGRESS_SECONDS + 0.5, port)
        clock.pass_by(protocol.LINGER_SECONDS + 0.5, port)
        answer = b"".join(iter(lambda: stalled.recv(65_536), b""))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert post(port, "/v1/rerank", BODY).status == 200


def test_of_answers_that_nobody_reads_the_oldest_goes_where_their_bytes_are_too_many(
    scripted: RerankServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "UNREAD_BYTES", 1 << 20)
    monkeypatch.setattr(protocol, "UNREAD_SECONDS", 0.0)
    LoopClock(monkeypatch)
    # Far more than the kernel keeps for a connection.
    size = 11 << 20
    big = request({"query": "q", "documents": [{"text": "d", "pad": "x" * size}]}, "Connection: close")

    def rest_of(connection: socket.socket) -> int:
        return sum(map(len, iter(lambda: connection.recv(1 << 20), b"")))

    with rest_server(scripted.port) as port, connect(port, big) as first:
        assert first.recv(100).startswith(b"HTTP/1.1 200 ")
        with connect(port, big) as second:
            assert second.recv(100).startswith(b"HTTP/1.1 200 ")
            assert rest_of(first) < size < rest_of(second)


def kept(kind: type) -> weakref.WeakSet[Any]:
    """Finds the objects of a class that something still refers to; by id, a later one might be a former."""
    return weakref.WeakSet([found for found in gc.get_objects() if type(found) is kind])


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Has objects go by their references alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_an_idle_connection_keeps_nothing_of_its_last_request(port: int) -> None:
    before, open_before = kept(RequestResponseCycle), kept(PatientProtocol)
    with connect(port, request(BODY, *["a: b"] * 5_000)) as idle:
        assert idle.recv(65_536).startswith(b"HTTP/1.1 200 ")
        until(lambda: kept(RequestResponseCycle) <= before)
        assert len(kept(PatientProtocol) - open_before) == 1


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_connection_that_has_ended_leaves_nothing_behind(port: int, reset: bool) -> None:
    before = kept(PatientProtocol)
    for sent in (b"", request(BODY), request(BODY, "Connection: close")):
        with connect(port, sent) as connection:
            assert not sent or connection.recv(65_536)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: kept(PatientProtocol) <= before)


@pytest.mark.parametrize(("path", "status"), [("/v1/rerank", 413), ("/v3", 404)])
def test_a_caller_who_asks_to_close_reads_why_the_body_was_refused(
    port: int, path: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    LoopClock(monkeypatch)  # so that the body is there in time
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 14000000\r\n\r\n"
    with connect(port, head.encode()) as connection:
        for _ in range(14):
            connection.sendall(b" " * 1_000_000)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.endswith(b"}")


def started(runner: CountingRunner, port: int) -> RerankServer:
    """Starts a server on a port."""
    settings = replace(ServerSettings(), port=port, admin_port=0)
    server = RerankServer(settings, loader=ScriptedLoader(runner, settings.engine))
    server.start()
    assert server.wait_until_loaded(WAIT)
    return server


@contextlib.contextmanager
def restartable(runner: CountingRunner) -> Iterator[RerankServer]:
    """Runs a server on a port that nobody gets by asking for any one while it is away."""
    server = started(runner, free_port())
    try:
        yield server
    finally:
        server.stop(5)


def restarted(server: RerankServer, runner: CountingRunner) -> RerankServer:
    """Starts a new server on a stopped one's port."""
    return started(runner, server.port)


def test_the_rest_server_outlives_a_restart_of_the_server() -> None:
    runner = CountingRunner()
    with restartable(runner) as server, rest_server(server.port) as port:
        assert post(port, "/v1/rerank", BODY).status == 200
        server.stop(1)
        assert post(port, "/v1/rerank", BODY).status == 503
        again = restarted(server, runner)
        try:
            until(lambda: post(port, "/v1/rerank", BODY).status == 200)
        finally:
            again.stop(1)


@pytest.mark.usefixtures("patient_probes")
def test_of_two_servers_the_one_that_is_there_takes_every_call() -> None:
    first, second = CountingRunner(), CountingRunner()
    with (
        restartable(first) as one,
        serving(runner=second) as two,
        rest_server(one.port, two.port) as port,
    ):
        for number in range(20):
            assert post(port, "/v1/rerank", {"query": f"{number}", "documents": ["d"]}).status == 200
        assert (first.sequences, second.sequences) == (10, 10)
        one.stop(1)
        for number in range(20):
            assert post(port, "/v1/rerank", {"query": f"{number}", "documents": ["e"]}).status == 200
        assert (first.sequences, second.sequences) == (10, 30)
        again = restarted(one, first)
        try:
            numbers = iter(range(10_000))
            until(
                lambda: (
                    post(port, "/v1/rerank", {"query": f"again {next(numbers)}", "documents": ["d"]}).status
                    == 200
                    and first.sequences > 10
                )
            )
        finally:
            again.stop(1)
