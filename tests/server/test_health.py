"""Probes are answered whatever else is going on: R5, R9, R29, R18's outside."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.server.methods import RERANK_SERVICE
from rerank_grpc.server.probes import health as probes
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.engine.test_engine import Deadly
from tests.http2 import raw_connections
from tests.server.test_errors import delay_ms_of, details_of
from tests.stubs import HealthStub, ReflectionStub
from tests.support import (
    LONG,
    WAIT,
    CountingRunner,
    HeldRunner,
    LateLoader,
    PatienceClock,
    channel_of,
    own_deadline,
    request_of,
    serving,
    stub_of,
    wait_for,
    waiting_of,
)

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def check(channel: grpc.Channel, service: str = "") -> int:
    return HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT).status


@pytest.fixture(params=["", RERANK_SERVICE], ids=["overall", "by service"])
def service(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_r29_a_server_is_alive_but_not_serving_until_the_warm_up_is_done(
    service: str, monkeypatch: pytest.MonkeyPatch
):
    loader = LateLoader()
    server = RerankServer(replace(ServerSettings(), port=0, admin_port=0), loader=loader)
    server.start()
    with channel_of(server.port) as channel, channel_of(server.admin_port) as admin:
        for each in (channel, admin):
            assert check(each, service) == NOT_SERVING
        own_deadline(monkeypatch, 0.2)
        with stub_of(server.port) as stub, pytest.raises(grpc.RpcError) as caught:
            stub.Rerank(request_of("q", "d"), timeout=WAIT)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (delay_ms_of(details_of(caught.value)[0]) or 0) >= 1000
        loader.may_load.set()
        assert server.wait_until_loaded(WAIT)
        for each in (channel, admin):
            assert check(each, service) == SERVING
    server.stop(5)


def test_watching_health_shows_the_change_and_keeps_no_probe_out(service: str):
    with serving(runner=CountingRunner()) as server, channel_of(server.port) as channel:
        watches = list[Any]()
        for _ in range(50):  # one after the other: at once they are a crowd, of which a slow one is given up
            watches.append(HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service)))
            assert next(watches[-1]).status == SERVING
        assert check(channel, service) == SERVING
        stopping = threading.Thread(target=server.stop, args=[WAIT])
        stopping.start()
        assert [next(watch).status for watch in watches] == [NOT_SERVING] * 50
        for watch in watches:
            watch.cancel()
        stopping.join(WAIT)


def test_r18_health_turns_to_not_serving_when_the_device_thread_dies():
    runner = Deadly()
    with serving(runner=runner) as server, channel_of(server.port) as channel, stub_of(server.port) as stub:
        runner.let()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Rerank(request_of("q", "d"), timeout=WAIT)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        with pytest.raises(grpc.RpcError) as caught:
            stub.Rerank(request_of("q", "d"), timeout=WAIT)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        # The calls fail first.
        wait_for(lambda: check(channel) == NOT_SERVING)
        assert stub.ListModels(pb.ListModelsRequest()).models[0].state == pb.MODEL_STATE_FAILED


@pytest.mark.clock
def test_r5_health_is_answered_while_the_service_is_saturated():
    runner = HeldRunner()
    settings = replace(ServerSettings(), max_calls=16)
    with serving(settings, runner=runner) as server, channel_of(server.port) as probe:
        with ThreadPoolExecutor(200) as callers:

            def call(number: int) -> grpc.StatusCode:
                with stub_of(server.port) as stub:
                    try:
                        stub.Rerank(request_of("q", f"document {number}"), timeout=WAIT)
                    except grpc.RpcError as error:
                        return error.code()
                    return grpc.StatusCode.OK

            answers = callers.map(call, range(200))
            runner.await_batch()
            took = []
            for _ in range(100):
                started = time.monotonic()
                assert check(probe) == SERVING
                took.append(time.monotonic() - started)
            runner.let_all()
            codes = list(answers)
        assert sorted(took)[98] < 0.1
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


def hold(channel: grpc.Channel, method: str) -> Any:
    """Starts a call that sends headers and never a message."""
    forever = threading.Event()

    def nothing():
        forever.wait(LONG)  # longer than whoever calls beside it
        yield from ()

    call: Any = channel.stream_stream(method, lambda _: b"", lambda _: b"")(nothing())
    call.add_done_callback(lambda _: forever.set())
    return call


@pytest.mark.clock
@pytest.mark.parametrize(
    "method",
    [
        f"/{RERANK_SERVICE}/Rerank",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_r9_one_connection_full_of_calls_without_a_body_starves_no_other(method: str):
    settings = replace(
        ServerSettings(),
        max_calls=16,
        connection_age_seconds=1.0,
        grace_seconds=1.0,
    )
    with serving(settings, runner=CountingRunner()) as server, channel_of(server.port) as hostile:
        held = [hold(hostile, method) for _ in range(16)]
        for _ in range(10):
            with channel_of(server.port) as channel, stub_of(server.port) as stub:
                started = time.monotonic()
                assert check(channel) == SERVING
                assert stub.Rerank(request_of("q", "d"), timeout=5).results
                assert time.monotonic() - started < 1
        for call in held:  # the connection's age frees what they hold
            with pytest.raises(grpc.RpcError):
                list(call)


def test_idle_reflection_streams_do_not_starve_reflection_on_another_connection(
    monkeypatch: pytest.MonkeyPatch,
):
    # None of them is given up meanwhile, however long that takes.
    PatienceClock(monkeypatch)
    settings = replace(ServerSettings(), max_calls=8)
    with serving(settings, runner=CountingRunner()) as server, channel_of(server.port) as hostile:
        held = [
            hold(hostile, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") for _ in range(8)
        ]
        idle = waiting_of(server, "a request (main-reflection)")
        wait_for(lambda: len(idle) == 8)
        with channel_of(server.port) as channel:
            answers = ReflectionStub(channel).ServerReflectionInfo(iter(()), timeout=WAIT)
            assert list(answers) == []
        for call in held:
            call.cancel()


WATCH = "/grpc.health.v1.Health/Watch"


@pytest.mark.clock
@pytest.mark.parametrize("tokens", [(), ("t0p",)], ids=["open", "with tokens"])
def test_watchers_that_read_nothing_silence_no_probe_and_no_change(tokens: tuple[str, ...]):
    settings = replace(ServerSettings(), access_tokens=tokens)
    with (
        serving(settings, runner=CountingRunner()) as server,
        raw_connections(server.port, 1, window=0) as (main,),
        raw_connections(server.admin_port, 6, window=0) as admins,
        channel_of(server.port) as channel,
        channel_of(server.admin_port) as admin,
    ):
        for connection in [main] * 96 + admins * 16:
            connection.call(WATCH, b"")
        watchers = [
            kind for kind in server._patience.waitings if "a reader" in kind.noun and "watch" in kind.noun
        ]
        wait_for(lambda: all(len(kind) > 0 for kind in watchers))
        for _ in range(20):
            started = time.monotonic()
            assert check(channel) == check(admin) == SERVING
            assert time.monotonic() - started < 1
        changed = threading.Thread(target=server._show_health)  # the registry's, which must not wait here
        changed.start()
        changed.join(1)
        assert not changed.is_alive()


def test_a_watcher_too_many_is_told_that_there_is_no_watch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probes, "MOST_WATCHERS", 5)
    with serving(runner=CountingRunner()) as server, channel_of(server.port) as channel:
        stub = HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(5)]
        assert [next(watch).status for watch in watches] == [SERVING] * 5
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(health_pb2.HealthCheckRequest()))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        watches[0].cancel()
        wait_for(lambda: server._health[0].watchers == 4)
        assert next(stub.Watch(health_pb2.HealthCheckRequest())).status == SERVING


def test_a_watcher_that_leaves_frees_its_place():
    with serving(runner=CountingRunner()) as server, channel_of(server.port) as channel:
        stub = HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(10)]
        assert [next(watch).status for watch in watches] == [SERVING] * 10
        (health, _) = server._health
        assert health.watchers == 10
        for watch in watches:
            watch.cancel()
        wait_for(lambda: health.watchers == 0)


def test_an_unknown_service_is_told_so_and_not_remembered():
    with serving(runner=CountingRunner()) as server, channel_of(server.port) as channel:
        stub = HealthStub(channel)
        unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        for number in range(200):
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=f"service {number}"))
            assert next(watch).status == unknown
            watch.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="none"), timeout=WAIT)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="x" * 257), timeout=WAIT)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        wait_for(lambda: server._health[0].watchers == 0)
