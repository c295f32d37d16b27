"""What a stranger's connections cost: calls without a body, answers nobody reads, idle reflection."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rerank_grpc.config import Settings
from rerank_grpc.server import lanes, reflection
from rerank_grpc.server.app import RerankServer
from rerank_grpc.server.patience import Waiting
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.http2 import raw_connections
from tests.support import WAIT, CountingRunner, channel_of, request_of, serving, stub_of, wait_for

CHECK = "/grpc.health.v1.Health/Check"
RERANK = "/rerank.v1.RerankService/Rerank"
STREAM = "/rerank.v1.RerankService/StreamRerank"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


class Context:
    """A gRPC context that remembers whether it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.callback = callback
        return True


def waiting_for(kind: Waiting, count: int) -> list[Context]:
    contexts = [Context() for _ in range(count)]
    for context in contexts:
        kind.begin(context)
    return contexts


def test_a_call_is_cancelled_once_it_has_waited_too_long():
    kind = Waiting("a request", seconds=5)
    (context,) = waiting_for(kind, 1)
    now = time.monotonic()
    kind.cancel_late(now + 4.9)
    assert not context.cancelled
    kind.cancel_late(now + 5.1)
    assert context.cancelled
    assert len(kind) == 0


def test_in_a_crowd_those_that_have_waited_longest_are_cancelled():
    kind = Waiting("a request", seconds=5, most=3)
    contexts = waiting_for(kind, 5)
    kind.cancel_late(time.monotonic())
    assert [context.cancelled for context in contexts] == [True, True, False, False, False]


def test_even_in_a_crowd_a_call_is_spared_until_an_ordinary_request_would_have_come():
    kind = Waiting("a request", seconds=5, most=3, spared=1)
    contexts = waiting_for(kind, 5)
    kind.cancel_late(time.monotonic())
    assert not any(context.cancelled for context in contexts)
    kind.cancel_late(time.monotonic() + 1.1)
    assert [context.cancelled for context in contexts] == [True, True, False, False, False]


def test_a_request_that_has_come_ends_the_wait():
    kind, context = Waiting("a request", seconds=5), Context()
    assert kind.receive(iter([b"message"]), context) == b"message"
    assert kind.receive(iter(()), context) is None
    kind.cancel_late(time.monotonic() + 100)
    assert not context.cancelled


def test_a_stream_waits_for_its_reader_from_each_message_until_the_next_is_asked_for():
    kind, context = Waiting("a reader", seconds=10), Context()
    messages = kind.send(["one", "two"], context)
    assert next(messages) == "one"
    assert len(kind) == 1
    assert list(messages) == ["two"]
    assert len(kind) == 0


def test_an_answer_is_waited_for_until_its_call_ends():
    kind, context = Waiting("a reader", seconds=10), Context()
    kind.answer(context)
    assert len(kind) == 1
    context.callback()
    assert len(kind) == 0


@contextmanager
def server_of(**settings: object) -> Iterator[RerankServer]:
    with serving(replace(Settings(), **settings), runner=CountingRunner()) as server:
        yield server


def check(port: int | None, timeout: float = 5) -> float:
    """Probes over a connection of its own; returns the seconds it took, or raises."""
    started = time.monotonic()
    with channel_of(port) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    return time.monotonic() - started


def rerank(port: int | None, number: int = 0) -> float:
    """Reranks over a connection of its own; returns the seconds it took, or raises."""
    started = time.monotonic()
    with stub_of(port) as stub:
        assert stub.Rerank(request_of("q", f"document {number}"), timeout=5).results
    return time.monotonic() - started


@pytest.mark.parametrize("method", [CHECK, RERANK])
def test_calls_without_a_body_keep_no_probe_and_no_call_out(method: str):
    with server_of() as server, raw_connections(server.port, 8) as connections:
        for connection in connections:
            for _ in range(96):
                connection.call(method)
        time_of_calls = [check(server.port) for _ in range(20)]
        wait_for(lambda: rerank(server.port) < 1)
        assert max(time_of_calls) < 1  # the figure, 50 ms, is measured apart: this machine may be busy
        assert max(rerank(server.port, n) for n in range(10)) < 1


def test_calls_without_a_body_on_the_admin_port_keep_no_probe_out():
    with server_of() as server, raw_connections(server.admin_port, 8) as connections:
        for connection in connections:
            for _ in range(96):
                connection.call(CHECK)
        assert max(check(server.admin_port) for _ in range(20)) < 1


def test_requests_that_stop_half_way_are_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes, "SMALL_SECONDS", 0.5)
    with server_of() as server, raw_connections(server.port, 1) as (connection,):
        for _ in range(40):
            connection.call(CHECK, b"x" * 1_000, promised=8 << 20)
        lane = next(kind for kind in server._patience.kinds if "main-check" in kind.what)
        wait_for(lambda: len(lane) > 0)
        wait_for(lambda: len(lane) <= lanes.SMALL_MOST)
        assert check(server.port) < 1


@pytest.mark.parametrize("method", [STREAM])
def test_streams_that_nobody_reads_keep_no_call_out_and_end(method: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes, "STALL_SECONDS", 0.5)
    message = pb.StreamRerankRequest(query="q", documents=[pb.Document(text="a b c")]).SerializeToString()
    with server_of() as server, raw_connections(server.port, 2, window=0) as connections:
        for connection in connections:
            for _ in range(96):
                connection.call(method, message)
        readers = next(kind for kind in server._patience.kinds if kind.what == "a reader (stream)")
        wait_for(lambda: len(readers) >= 96)
        assert server.door.calls == 0  # scored: whether anybody reads it is another matter
        assert rerank(server.port) < 1
        wait_for(lambda: len(readers) == 0)
        with stub_of(server.port) as stub:
            request = pb.StreamRerankRequest(query="q", documents=[pb.Document(text="d")])
            assert len(list(stub.StreamRerank(request, timeout=WAIT))) == 2


def test_answers_that_nobody_reads_are_thrown_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes, "STALL_SECONDS", 0.5)
    request = request_of("q", "word " * 20_000, return_documents=True).SerializeToString()
    with server_of() as server, raw_connections(server.port, 1, window=0) as (connection,):
        for _ in range(10):
            connection.call(RERANK, request)
        readers = next(kind for kind in server._patience.kinds if kind.what == "a reader (rerank)")
        wait_for(lambda: len(readers) == 10)
        wait_for(lambda: len(readers) == 0)


def test_idle_reflection_streams_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reflection, "IDLE_SECONDS", 0.5)
    with server_of() as server, raw_connections(server.port, 2) as connections:
        for connection in connections:
            for _ in range(96):
                connection.call(REFLECT)
        idle = next(kind for kind in server._patience.kinds if "main-reflection" in kind.what)
        wait_for(lambda: len(idle) > 0)
        wait_for(lambda: len(idle) == 0)


def test_a_call_that_ends_without_a_request_is_told_so():
    with server_of() as server, channel_of(server.port) as channel:
        call = channel.stream_unary(RERANK, lambda message: message, lambda message: message)
        with pytest.raises(grpc.RpcError) as caught:
            call(iter(()), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", [CHECK, RERANK, REFLECT])
def test_a_message_of_another_kind_is_refused_by_name(method: str):
    with server_of() as server, channel_of(server.port) as channel:
        call = channel.stream_stream(method, lambda message: message, lambda message: message)
        with pytest.raises(grpc.RpcError) as caught:
            list(call(iter([b"\xff\xff\xff"]), timeout=5))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "is not a " in caught.value.details()


def test_a_probe_with_a_large_message_is_refused():
    with server_of() as server, channel_of(server.port) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="x" * 1_000_000), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stopping_server_waits_for_no_body(monkeypatch: pytest.MonkeyPatch):
    with server_of() as server, raw_connections(server.port, 2, window=0) as connections:
        for connection in connections:
            connection.call(CHECK)
            connection.call(RERANK)
            connection.call("/grpc.health.v1.Health/Watch", b"")
        bodies = next(kind for kind in server._patience.kinds if kind.what == "a request (rerank)")
        wait_for(lambda: len(bodies) == 2)
        started = time.monotonic()
        server.stop(20)
        assert time.monotonic() - started < 5
