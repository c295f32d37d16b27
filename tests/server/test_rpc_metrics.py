"""gRPC's own metrics of a server, over real channels: what began, how it ended, its time and its bytes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client import generate_latest

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.runner.runner import Runner
from rerank_grpc.server.rpc_metrics import DURATIONS, FAMILIES, SIZES, RpcMetrics
from rerank_grpc.server.server import RerankServer
from rerank_grpc.telemetry.registry import MetricsRegistry
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.stubs import HealthStub
from tests.support import (
    CountingRunner,
    HeldRunner,
    ScriptedLoader,
    channel_of,
    request_of,
    stub_of,
    wait_for,
)

RERANK, STREAM = "rerank.v1.RerankService/Rerank", "rerank.v1.RerankService/StreamRerank"
HEALTH = "rerank.v1.RerankService/Health"
STARTED = "grpc_server_call_started_total"
DURATION = "grpc_server_call_duration_seconds"
SENT = "grpc_server_call_sent_total_compressed_message_size_bytes"
RECEIVED = "grpc_server_call_rcvd_total_compressed_message_size_bytes"
WRONG = (("authorization", "Bearer wrong"),)


class Counted:
    """A server whose RPCs are counted, and what has been counted."""

    def __init__(self, settings: ServerSettings, runner: Runner) -> None:
        settings = replace(settings, port=0, admin_port=0)
        self.registry = MetricsRegistry()
        metrics = RpcMetrics(self.registry)
        loader = ScriptedLoader(runner, settings.engine)
        self.server = RerankServer(settings, loader=loader, sinks=(), interceptors=(metrics,))

    def started(self, method: str) -> float | None:
        return self.registry.get_sample_value(STARTED, {"grpc_method": method})

    def ended(self, method: str, status: str) -> float:
        return self._value(f"{DURATION}_count", method, status)

    def total(self, family: str, method: str, status: str = "OK") -> float:
        return self._value(f"{family}_sum", method, status)

    def _value(self, name: str, method: str, status: str) -> float:
        return self.registry.get_sample_value(name, {"grpc_method": method, "grpc_status": status}) or 0.0


@contextmanager
def counted(settings: ServerSettings | None = None, runner: Runner | None = None) -> Iterator[Counted]:
    running = Counted(settings or ServerSettings(), runner or CountingRunner())
    running.server.start()
    try:
        assert running.server.wait_until_loaded(60)
        yield running
    finally:
        if isinstance(runner, HeldRunner):
            runner.let_all()
        running.server.stop(5)


def test_every_method_of_both_servers_begins_at_0():
    with counted() as running:
        text = generate_latest(running.registry).decode()
        for method in (RERANK, STREAM, HEALTH, "grpc.health.v1.Health/Check", "tei.v1.Rerank/Rerank"):
            assert running.started(method) == 0, method
        assert running.started("rerank.v1.ModelAdminService/LoadModel") == 0
        assert running.started("inference.GRPCInferenceService/ModelInfer") == 0
        assert 'grpc_status="' not in text


def test_a_call_has_its_method_status_time_and_sizes():
    request = request_of("q", "one", "two")
    with counted() as running, stub_of(running.server.port) as stub:
        answer = stub.Rerank(request)
        wait_for(lambda: running.ended(RERANK, "OK") == 1)
        assert running.started(RERANK) == 1
        assert 0 < running.total(DURATION, RERANK) < 20
        assert running.total(RECEIVED, RERANK) == request.ByteSize()
        assert running.total(SENT, RERANK) == answer.ByteSize()


def test_a_streams_sizes_are_those_of_all_its_messages():
    request = pb.StreamRerankRequest(query="q", documents=[{"text": f"d{n}"} for n in range(40)])
    with counted() as running, stub_of(running.server.port) as stub:
        answers = list(stub.StreamRerank(request))
        wait_for(lambda: running.ended(STREAM, "OK") == 1)
        assert len(answers) > 1
        assert running.total(SENT, STREAM) == sum(answer.ByteSize() for answer in answers)
        assert running.total(RECEIVED, STREAM) == request.ByteSize()


def test_a_refusal_has_its_status():
    with counted() as running, stub_of(running.server.port) as stub:
        with pytest.raises(grpc.RpcError):
            stub.Rerank(request_of("", "d"))
        with pytest.raises(grpc.RpcError):
            stub.Rerank(request_of("q", "d", model="none"))
        wait_for(lambda: running.ended(RERANK, "NOT_FOUND") == 1)
        wait_for(lambda: running.ended(RERANK, "INVALID_ARGUMENT") == 1)
        assert running.total(SENT, RERANK, "NOT_FOUND") == 0
        assert running.ended(RERANK, "OK") == 0


def test_an_unauthenticated_call_counts_for_its_method_and_for_no_name_of_a_callers():
    settings = replace(ServerSettings(), access_tokens=("secret",))
    with counted(settings) as running, channel_of(running.server.port) as channel:
        with pytest.raises(grpc.RpcError):
            rerank_pb2_grpc.RerankServiceStub(channel).Rerank(request_of("q", "d"), metadata=WRONG)
        strange: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/CANARY/Method")
        with pytest.raises(grpc.RpcError):
            strange(b"", metadata=WRONG)
        wait_for(lambda: running.ended("other", "UNAUTHENTICATED") == 1)
        wait_for(lambda: running.ended(RERANK, "UNAUTHENTICATED") == 1)
        assert "CANARY" not in generate_latest(running.registry).decode()


def test_an_unknown_method_counts_as_other():
    with counted() as running, channel_of(running.server.port) as channel:
        for name in ("/rerank.v1.RerankService/CANARY", "/CANARY/Method", "/CANARY"):
            method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(name)
            with pytest.raises(grpc.RpcError) as caught:
                method(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert running.started("other") == 3
        assert running.ended("other", "UNIMPLEMENTED") == 3
        assert "CANARY" not in generate_latest(running.registry).decode()


@pytest.mark.parametrize("method", ["Rerank", "StreamRerank"])
def test_a_call_that_its_caller_cancels_is_cancelled(method: str):
    runner = HeldRunner()
    with counted(runner=runner) as running, stub_of(running.server.port) as stub:
        name = f"rerank.v1.RerankService/{method}"
        kind = pb.RerankRequest if method == "Rerank" else pb.StreamRerankRequest
        message = kind(query="q", documents=[{"text": "d"}])
        call = stub.Rerank.future(message) if method == "Rerank" else stub.StreamRerank(message)
        runner.await_batch()
        assert running.started(name) == 1
        assert running.ended(name, "CANCELLED") == 0
        call.cancel()
        wait_for(lambda: running.ended(name, "CANCELLED") == 1)
        runner.let_all()
        stub.Rerank(request_of("q", "d"))
        wait_for(lambda: running.ended(RERANK, "OK") == 1)
        # What its handler says later of the call that is over is not counted again.
        assert running.ended(name, "CANCELLED") == 1


def test_a_stream_that_its_caller_leaves_in_the_middle_is_cancelled_with_the_bytes_so_far():
    request = pb.StreamRerankRequest(query="q", documents=[{"text": f"d{n}"} for n in range(300)])
    with counted() as running, stub_of(running.server.port) as stub:
        call = stub.StreamRerank(request)
        first = next(call)
        call.cancel()
        wait_for(lambda: running.ended(STREAM, "CANCELLED") + running.ended(STREAM, "OK") == 1)
        status = "CANCELLED" if running.ended(STREAM, "CANCELLED") else "OK"  # where all was sent by then
        assert running.total(SENT, STREAM, status) >= first.ByteSize()


def test_a_fault_of_a_handler_has_the_status_that_grpcio_gives_it(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise ValueError("CANARY")

    with counted() as running, stub_of(running.server.port) as stub:
        monkeypatch.setattr("rerank_grpc.server.handler.CallIds.read", fail)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Health(pb.HealthRequest())
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        wait_for(lambda: running.ended(HEALTH, "UNKNOWN") == 1)


def test_the_admin_port_is_counted_too():
    load = "rerank.v1.ModelAdminService/LoadModel"
    with counted() as running, channel_of(running.server.admin_port) as channel:
        rerank_pb2_grpc.ModelAdminServiceStub(channel).LoadModel(pb.LoadModelRequest(model="embedded"))
        HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        wait_for(lambda: running.ended("grpc.health.v1.Health/Check", "OK") == 1)
        wait_for(lambda: running.ended(load, "OK") == 1)


def test_handlers_keep_their_pools(monkeypatch: pytest.MonkeyPatch):
    names = list[str]()

    def note(*_: object) -> None:
        names.append(threading.current_thread().name)

    with counted() as running, stub_of(running.server.port) as stub:
        monkeypatch.setattr("rerank_grpc.server.handler.deliver", note)
        stub.Rerank(request_of("q", "d"))
        stub.Health(pb.HealthRequest())
    assert [name.rpartition("_")[0] for name in names] == ["rerank", "probe"]


def test_the_buckets_are_those_of_the_proposal():
    assert (len(DURATIONS), DURATIONS[:3], DURATIONS[-1]) == (41, (0, 0.00001, 0.00005), 100)
    assert SIZES[:6] == (0, 1024, 2048, 4096, 16_384, 65_536)
    assert (len(SIZES), SIZES[-1]) == (14, 4 << 30)
    assert list(DURATIONS) == sorted(set(DURATIONS))
    assert [family.name for family in FAMILIES] == [STARTED, DURATION, SENT, RECEIVED]
