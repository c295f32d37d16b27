"""What a stranger's connections cost: calls without a body, answers nobody reads, idle reflection."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import Cancelled
from rerank_grpc.server import lanes, methods, patience
from rerank_grpc.server.patience import BYTES_PER_SECOND, Patience, Waiting
from rerank_grpc.server.probes import health as probes
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.http2 import DATA, END_STREAM, frame, raw_connections
from tests.stubs import HealthStub, message_of
from tests.support import (
    LONG,
    WAIT,
    CountingRunner,
    PatienceClock,
    channel_of,
    drains_of,
    loaded_in,
    request_of,
    serving,
    stub_of,
    wait_for,
    waiting_of,
)

CHECK = "/grpc.health.v1.Health/Check"
RERANK = "/rerank.v1.RerankService/Rerank"
STREAM = "/rerank.v1.RerankService/StreamRerank"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


class Context:
    """A gRPC context that remembers whether it was cancelled."""

    def __init__(self, peer: str = "ipv4:10.0.0.1:1") -> None:
        self._peer = peer
        self.cancelled = False

    def peer(self) -> str:
        return self._peer

    def cancel(self) -> None:
        self.cancelled = True

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.callback = callback
        return True


def as_grpcs(context: Context) -> grpc.ServicerContext:
    """The context for a wait, which uses no more of grpcio's."""
    return cast(grpc.ServicerContext, context)


def waits_of(waiting: Waiting, count: int, peer: str = "ipv4:10.0.0.1:1", size: int = 0) -> list[Context]:
    contexts = [Context(peer) for _ in range(count)]
    for context in contexts:
        waiting.begin(as_grpcs(context), size)
    return contexts


def cancelled(contexts: list[Context]) -> list[bool]:
    return [context.cancelled for context in contexts]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> PatienceClock:
    return PatienceClock(monkeypatch)


def test_a_call_is_cancelled_once_it_has_waited_too_long(clock: PatienceClock):
    waiting = Waiting("a request", 5)
    contexts = waits_of(waiting, 1)
    waiting.cancel_late(clock() + 4.9)
    assert cancelled(contexts) == [False]
    waiting.cancel_late(clock() + 5.1)
    assert cancelled(contexts) == [True]
    assert len(waiting) == 0


def test_a_large_message_has_the_time_that_its_bytes_take(clock: PatienceClock):
    waiting = Waiting("a reader", 10)
    contexts = waits_of(waiting, 1, size=20 * BYTES_PER_SECOND)
    waiting.cancel_late(clock() + 29.9)
    assert cancelled(contexts) == [False]
    waiting.cancel_late(clock() + 30.1)
    assert cancelled(contexts) == [True]


def test_in_a_crowd_the_oldest_calls_of_the_connection_that_has_most_are_cancelled(clock: PatienceClock):
    waiting = Waiting("a request", 5, capacity=3)
    friend = waits_of(waiting, 1, "ipv4:10.0.0.1:1")
    strangers = waits_of(waiting, 4, "ipv4:10.0.0.1:2")
    waiting.cancel_late(clock() + 0.2)
    assert cancelled([*friend, *strangers]) == [False] * 5  # spared: an ordinary request would have come
    waiting.cancel_late(clock() + 0.3)
    assert cancelled([*friend, *strangers]) == [False, True, True, False, False]


def test_among_connections_that_have_as_many_the_one_that_has_waited_longest_loses(clock: PatienceClock):
    waiting = Waiting("a request", 100, capacity=3)
    strangers = [waits_of(waiting, 1, f"ipv4:10.0.0.2:{n}")[0] for n in range(3)]
    honest = waits_of(waiting, 1, "ipv4:10.0.0.1:1")
    waiting.cancel_late(clock() + 0.3)
    assert cancelled([*strangers, *honest]) == [True, False, False, False]


def test_a_connection_whose_calls_are_spared_spares_no_others(clock: PatienceClock):
    waiting = Waiting("a request", 100, capacity=3)
    strangers = [waits_of(waiting, 1, f"ipv4:10.0.0.2:{n}")[0] for n in range(5)]
    clock.now += 4
    fresh = waits_of(waiting, 2, "ipv4:10.0.0.1:1")
    waiting.cancel_late(clock())
    assert cancelled(fresh) == [False, False]
    assert cancelled(strangers) == [True] * 4 + [False]


def test_what_fails_for_one_call_ends_neither_the_thread_nor_the_bounds():
    class Broken(Context):
        def cancel(self) -> None:
            raise RuntimeError("no such call")

    patient, healthy = Patience(), Context()
    waiting = patient.look_after(Waiting("a request", 0.0))
    waiting.begin(as_grpcs(Broken()))
    patient.start()
    wait_for(lambda: len(waiting) == 0)
    waiting.begin(as_grpcs(healthy))
    wait_for(lambda: healthy.cancelled)
    assert patient._thread.is_alive()
    patient.close()


def test_a_connection_with_many_calls_in_a_crowd_is_not_spared_for_long(clock: PatienceClock):
    waiting = Waiting("a request", 5, capacity=20)
    strangers = waits_of(waiting, 30, "ipv4:10.0.0.1:2")
    waiting.cancel_late(clock() + 0.03)
    assert cancelled(strangers) == [True] * 10 + [False] * 20


def test_unread_answers_beyond_the_bytes_that_may_wait_are_thrown_away(clock: PatienceClock):
    waiting = Waiting("a reader", 5, capacity_bytes=1_000)
    small = waits_of(waiting, 5, "ipv4:10.0.0.1:1", size=10)
    large = waits_of(waiting, 5, "ipv4:10.0.0.1:2", size=400)
    waiting.cancel_late(clock() + 0.3)
    assert cancelled(small) == [False] * 5
    assert cancelled(large) == [True] * 3 + [False] * 2


def test_a_crowd_is_told_when_it_forms_and_so_is_a_large_answer():
    told: list[int] = []
    waiting = Waiting("a request", 5, capacity=2)
    waiting.on_crowd = lambda: told.append(0)
    waits_of(waiting, 2)
    assert told == []
    waits_of(waiting, 1)
    assert len(told) == 1
    waiting = Waiting("a reader", 5)
    waiting.on_crowd = lambda: told.append(0)
    waits_of(waiting, 1, size=1 << 20)
    assert len(told) == 2


def test_when_the_server_stops_every_wait_is_cut_from_that_moment_on(clock: PatienceClock):
    waiting = Waiting("a request", 100)
    contexts = waits_of(waiting, 1)
    waiting.begin_drain(2)
    waiting.cancel_late(clock() + 1.9)
    assert cancelled(contexts) == [False]
    waiting.cancel_late(clock() + 2.1)
    assert cancelled(contexts) == [True]


def test_a_request_that_has_come_ends_the_wait(clock: PatienceClock):
    waiting, context = Waiting("a request", 5), Context()
    assert waiting.receive(iter([b"message"]), as_grpcs(context)) == b"message"
    assert waiting.receive(iter(()), as_grpcs(context)) is None
    waiting.cancel_late(clock() + 100)
    assert not context.cancelled


def test_all_requests_of_a_call_are_one_wait(clock: PatienceClock):
    waiting, context = Waiting("a request", 5), Context()
    received = waiting.receive_all(iter([b"one", b"two"]), as_grpcs(context))
    assert next(received) == b"one"
    waiting.cancel_late(clock() + 4.9)
    assert list(received) == [b"two"]
    assert len(waiting) == 0
    assert not context.cancelled


def test_a_call_that_was_cancelled_among_its_requests_is_ended(clock: PatienceClock):
    waiting, context = Waiting("a request", 5), Context()
    received = waiting.receive_all(iter([b"one", b"two"]), as_grpcs(context))
    assert next(received) == b"one"
    waiting.cancel_late(clock() + 5.1)
    assert context.cancelled
    assert next(received) == b"two"
    with pytest.raises(Cancelled, match="waited too long for a request"):
        next(received)


def test_a_call_whose_requests_are_refused_waits_no_more():
    waiting = Waiting("a request", 5)
    received = waiting.receive_all(iter([b"one", b"two"]), as_grpcs(Context()))
    assert next(received) == b"one"
    received.close()  # type: ignore[attr-defined]
    assert len(waiting) == 0


def test_a_stream_waits_for_its_reader_from_each_message_until_the_next_is_asked_for():
    waiting, context = Waiting("a reader", 10), Context()
    messages = waiting.send([b"one", b"two"], as_grpcs(context))
    assert next(messages) == b"one"
    assert len(waiting) == 1
    assert list(messages) == [b"two"]
    assert len(waiting) == 0


def test_an_answer_is_waited_for_until_its_call_ends():
    waiting, context = Waiting("a reader", 10), Context()
    assert waiting.send_last(b"answer", as_grpcs(context)) == b"answer"
    assert len(waiting) == 1
    context.callback()
    assert len(waiting) == 0


@contextmanager
def server_of(**settings: Any) -> Iterator[RerankServer]:
    with serving(replace(ServerSettings(), **settings), runner=CountingRunner()) as server:
        yield server


def check(port: int | None, timeout: float = 5) -> float:
    """Probes over a connection of its own; returns the seconds it took, or raises."""
    started = time.monotonic()
    with channel_of(port) as channel:
        stub = HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    return time.monotonic() - started


def rerank(port: int | None, number: int = 0) -> float:
    """Reranks over a connection of its own; returns the seconds it took, or raises."""
    started = time.monotonic()
    with stub_of(port) as stub:
        assert stub.Rerank(request_of("q", f"document {number}"), timeout=5).results
    return time.monotonic() - started


@pytest.mark.clock
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


@pytest.mark.clock
def test_calls_without_a_body_on_the_admin_port_keep_no_probe_out():
    with server_of() as server, raw_connections(server.admin_port, 8) as connections:
        for connection in connections:
            for _ in range(96):
                connection.call(CHECK)
        assert max(check(server.admin_port) for _ in range(20)) < 1


@pytest.mark.clock
def test_requests_that_stop_half_way_are_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patience, "HOG_SPARED_SECONDS", 0.0)
    with server_of() as server, raw_connections(server.port, 1) as (connection,):
        awaited = waiting_of(server, "a request (main-check)")
        for _ in range(40):
            connection.call(CHECK, b"x" * 100_000, promised=8 << 20)
        wait_for(lambda: 0 < len(awaited) <= lanes.SMALL_CAPACITY)
        assert check(server.port) < 1
        wait_for(lambda: len(awaited) == 0)  # after REQUEST_SECONDS


@pytest.mark.clock
def test_a_burst_of_ordinary_probes_loses_none():
    with server_of() as server, channel_of(server.port) as channel:
        stub = HealthStub(channel)
        for _ in range(5):
            calls = [stub.Check.future(health_pb2.HealthCheckRequest(), timeout=WAIT) for _ in range(90)]
            assert [call.result().status for call in calls] == [1] * 90


def test_a_request_that_comes_slowly_is_served_beside_a_flood_of_empty_calls(monkeypatch: pytest.MonkeyPatch):
    # A busy machine takes longer to start the flood's threads than a call is spared, and less the longer the
    # queue: the one before the flood must count as young for as long as that takes.
    monkeypatch.setattr(patience, "SPARED_SECONDS", 3_600.0)
    message = request_of("q", *["word " * 100] * 100).SerializeToString()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    with (
        server_of() as server,
        raw_connections(server.port, 3) as strangers,
        raw_connections(server.port, 1) as (slow,),
    ):
        awaited = waiting_of(server, "a request (rerank)")
        begun, begin = list[None](), awaited.begin

        def noting(context: grpc.ServicerContext, size: int = 0) -> None:
            begin(context, size)
            begun.append(None)

        monkeypatch.setattr(awaited, "begin", noting)
        slow.call(RERANK)
        slow.send(frame(DATA, 0, 1, body[:10_000]))
        wait_for(lambda: len(awaited) == 1)
        for connection in strangers:
            for _ in range(90):
                connection.call(RERANK)
        # More than may wait have come, and the excess has gone again.
        wait_for(lambda: len(begun) == 1 + 3 * 90)
        wait_for(lambda: len(awaited) <= methods.TEXTS_CAPACITY)
        for at in range(10_000, len(body), 10_000):
            slow.send(frame(DATA, 0, 1, body[at : at + 10_000]))
        slow.send(frame(DATA, END_STREAM, 1))
        assert b"grpc-status" in slow.receive_until(b"grpc-status")
        assert loaded_in(server).engine.counts.batches == 1


@pytest.mark.clock
@pytest.mark.parametrize("method", [STREAM])
def test_streams_that_nobody_reads_keep_no_call_out_and_end(method: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes, "READER_SECONDS", 0.5)
    message = pb.StreamRerankRequest(query="q", documents=[pb.Document(text="a b c")]).SerializeToString()
    with server_of() as server, raw_connections(server.port, 2, window=0) as connections:
        for connection in connections:
            for _ in range(96):
                connection.call(method, message)
        readers = waiting_of(server, "a reader (stream)")
        wait_for(lambda: len(readers) >= 96)
        wait_for(
            lambda: server.reranker.gate.calls == 0
        )  # scored: whether anybody reads it is another matter
        assert rerank(server.port) < 1
        wait_for(lambda: len(readers) == 0)
        with stub_of(server.port) as stub:
            request = pb.StreamRerankRequest(query="q", documents=[pb.Document(text="d")])
            assert len(list(stub.StreamRerank(request, timeout=WAIT))) == 2


@pytest.mark.clock
def test_answers_that_nobody_reads_are_thrown_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lanes, "READER_SECONDS", 0.5)
    request = request_of("q", "word " * 20_000, return_documents=True).SerializeToString()
    with server_of() as server, raw_connections(server.port, 1, window=0) as (connection,):
        for _ in range(10):
            connection.call(RERANK, request)
        readers = waiting_of(server, "a reader (rerank)")
        wait_for(lambda: len(readers) == 10)
        wait_for(lambda: len(readers) == 0)
        assert rerank(server.port) < 5


@pytest.mark.clock
def test_idle_reflection_streams_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probes, "QUESTION_SECONDS", 0.5)
    with server_of() as server, raw_connections(server.port, 2) as connections:
        for connection in connections:
            for _ in range(96):
                connection.call(REFLECT)
        idle = next(kind for kind in server._patience.waitings if "main-reflection" in kind.noun)
        wait_for(lambda: len(idle) > 0)
        wait_for(lambda: len(idle) == 0)
        assert check(server.port) < 5


def test_a_call_that_ends_without_a_request_is_told_so():
    with server_of() as server, channel_of(server.port) as channel:
        call = channel.stream_unary(RERANK, lambda message: message, lambda message: message)
        with pytest.raises(grpc.RpcError) as caught:
            call(iter(()), timeout=WAIT)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", [CHECK, RERANK, REFLECT])
def test_a_message_of_another_kind_is_refused_by_name(method: str):
    with server_of() as server, channel_of(server.port) as channel:
        call = channel.stream_stream(method, lambda message: message, lambda message: message)
        with pytest.raises(grpc.RpcError) as caught:
            list(call(iter([b"\xff\xff\xff"]), timeout=WAIT))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the message is no " in message_of(caught.value)


def test_a_probe_with_a_large_message_is_refused():
    with server_of() as server, channel_of(server.port) as channel:
        stub = HealthStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="x" * 1_000_000), timeout=WAIT)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stopping_server_waits_for_no_body(monkeypatch: pytest.MonkeyPatch):
    for module in (lanes, methods):  # of waits that it does not cut
        monkeypatch.setattr(module, "REQUEST_SECONDS", 2 * LONG)
    with server_of() as server, raw_connections(server.port, 2, window=0) as connections:
        for connection in connections:
            connection.call(CHECK)
            connection.call(RERANK)
            connection.call("/grpc.health.v1.Health/Watch", b"")
        bodies = waiting_of(server, "a request (rerank)")
        wait_for(lambda: len(bodies) == 2)
        started, drains = time.monotonic(), drains_of(monkeypatch)
        server.stop(3 * WAIT)
        assert time.monotonic() - started < 2 * WAIT
    assert drains["a request (rerank)"] == drains["a request (stream)"] == 5
    assert drains["a request (main-check)"] == 1
