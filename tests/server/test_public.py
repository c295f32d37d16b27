"""Every method of both servers, as the servers themselves list them: entered only by callers that may."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from rerank_grpc.callers import Right
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.protocols import inference_pb2, tei_pb2
from rerank_grpc.server.guard import NEEDS
from rerank_grpc.server.lanes import Lane
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.callers import STRANGERS, settings_of
from tests.http2 import raw_connections
from tests.stubs import HealthStub, message_of
from tests.support import (
    WAIT,
    CountingRunner,
    ScriptedLoader,
    channel_of,
    logged,
    request_of,
    serving,
    wait_for,
    waiting_of,
)

PAIR = tei_pb2.PredictPairRequest(inputs=["q", "d"])
# Requests for the default model that are answered; of other methods an empty one is.
MESSAGES: dict[str, Message] = {
    "Rerank": request_of("q", "d"),
    "StreamRerank": pb.StreamRerankRequest(query="q", documents=[pb.Document(text="d")]),
    "LoadModel": pb.LoadModelRequest(model="one"),
    "UnloadModel": pb.UnloadModelRequest(model="one"),
    "tei.Rerank": tei_pb2.RerankRequest(query="q", texts=["d"]),
    "tei.RerankStream": tei_pb2.RerankStreamRequest(query="q", text="d"),
    "tei.PredictPair": PAIR,
    "tei.PredictPairStream": PAIR,
    "kserve.ModelInfer": inference_pb2.ModelInferRequest(model_name="one"),
    "kserve.ModelReady": inference_pb2.ModelReadyRequest(name="one"),
    "kserve.ModelMetadata": inference_pb2.ModelMetadataRequest(name="one"),
    "kserve.ModelConfig": inference_pb2.ModelConfigRequest(name="one"),
}
# Methods that concern no model, or each that the caller may call. A new method is not among them.
WITHOUT_MODEL = {
    "ListModels",
    "kserve.ServerLive",
    "kserve.ServerReady",
    "kserve.ServerMetadata",
    "ServerReflectionInfo",
    "GetTopChannels",
    "GetServers",
    "GetServer",
    "GetServerSockets",
    "GetChannel",
    "GetSubchannel",
    "GetSocket",
}
PUBLIC = {"Check", "Watch"}
REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class Walk(NamedTuple):
    """A server, its methods with the ports that have them, and the handlers that were entered."""

    server: RerankServer
    methods: list[tuple[int, str, str]]
    entered: list[str]

    def ask(self, port: int, path: str, method: str, *values: str) -> grpc.RpcError | None:
        """Calls a method with these authorizations; returns the error, None for an answer."""
        metadata = [("authorization", value) for value in values]
        message = MESSAGES.get(method)
        with channel_of(port) as channel:
            ask: Any = channel.stream_stream(path)
            call = ask(iter([message.SerializeToString() if message else b""]), metadata=metadata, timeout=20)
            try:
                next(call, None)
            except grpc.RpcError as error:
                return error
            finally:
                call.cancel()
        return None


def counting(make: Callable[..., Any], entered: list[str]) -> Callable[..., Any]:
    """Has a lane's maker of handlers note each call that enters the servicer's own method."""

    def made(lane: Lane, method: str, behaviour: Callable[..., Any], *rest: Any, **named: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            entered.append(method)
            return behaviour(*arguments)

        return make(lane, method, counted, *rest, **named)

    return made


@pytest.fixture(scope="module")
def walk() -> Iterator[Walk]:
    entered: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("unary", "stream", "gathering", "conversation"):
            patch.setattr(Lane, name, counting(getattr(Lane, name), entered))
        with serving(settings_of(), runner=CountingRunner()) as server:
            yield Walk(server, list(methods_of(server)), entered)


def methods_of(server: RerankServer) -> Iterator[tuple[int, str, str]]:
    """Yields the port, the path and the record's name of each method that answers, whoever calls."""
    assert server.admin_port is not None
    for port in (server.port, server.admin_port):
        with channel_of(port) as channel:
            for path, name in server._methods.items():
                ask: Any = channel.stream_stream(path)
                call = ask(iter([b""]), metadata=[("authorization", "Bearer all-token")], timeout=20)
                try:
                    next(call, None)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                        continue
                finally:
                    call.cancel()
                yield port, path, name


def test_the_list_of_needs_names_the_registered_methods_and_no_others(walk: Walk) -> None:
    assert {name for _, _, name in walk.methods} == set(NEEDS)
    assert {name for name, right in NEEDS.items() if right is None} == PUBLIC
    assert set(MESSAGES) | WITHOUT_MODEL | PUBLIC | {"Health", "tei.Info"} == set(NEEDS)


@pytest.mark.parametrize("case", STRANGERS)
def test_nobody_enters_a_method_without_a_token_that_counts(walk: Walk, case: str) -> None:
    for port, path, method in walk.methods:
        before = len(walk.entered)
        error = walk.ask(port, path, method, *STRANGERS[case])
        if method in PUBLIC:
            assert error is None
            assert walk.entered[before:] == [method]
            continue
        assert error is not None, path
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED, path
        assert walk.entered[before:] == [], path
        over = "the token of expired has expired: the server's operator makes another"
        assert (message_of(error) == over) == (case == "expired")


def test_a_token_outside_ascii_enters_nothing(walk: Walk) -> None:
    """grpcio's own client sends none, so its bytes are written here."""
    for port, path, method in walk.methods:
        if method in PUBLIC:
            continue
        before = len(walk.entered)
        message = MESSAGES.get(method)
        with raw_connections(port, 1) as (connection,):
            metadata = [("authorization", "Bearer all-tokén")]
            connection.call(path, message.SerializeToString() if message else b"", metadata=metadata)
            assert b"grpc-status" in connection.receive_until(b"grpc-status")
        assert walk.entered[before:] == [], path


def test_a_caller_enters_what_its_rights_are_for_and_nothing_else(walk: Walk) -> None:
    for port, path, method in walk.methods:
        needed = NEEDS[method]
        for right in Right:
            before = len(walk.entered)
            error = walk.ask(port, path, method, f"Bearer no-{right.value}-token")
            if right is not needed:
                assert error is None or error.code() not in REFUSALS, (path, right)
                assert walk.entered[before:] == [method], (path, right)
                continue
            assert error is not None, path
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED, path
            assert message_of(error) == (
                f"no-{right.value} lacks the right '{right.value}': the server's operator gives it"
            )
            assert walk.entered[before:] == [], path


def test_a_caller_of_one_model_gets_nothing_of_another(walk: Walk) -> None:
    for port, path, method in walk.methods:
        error = walk.ask(port, path, method, "Bearer narrow-token")
        if method in PUBLIC | WITHOUT_MODEL:
            assert error is None or error.code() not in REFUSALS, path
            continue
        assert error is not None, path
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED, path
        assert message_of(error) == "narrow may not call this model: ListModels tells those that it may"


@pytest.fixture
def stub(walk: Walk) -> Iterator[rerank_pb2_grpc.RerankServiceStub]:
    with channel_of(walk.server.port) as channel:
        yield rerank_pb2_grpc.RerankServiceStub(channel)


NARROW = (("authorization", "Bearer narrow-token"),)


def test_a_caller_of_one_model_has_that_one_by_all_its_names(
    stub: rerank_pb2_grpc.RerankServiceStub,
) -> None:
    listed = stub.ListModels(pb.ListModelsRequest(), metadata=NARROW).models
    assert [model.name for model in listed] == ["two"]
    for name in ("two", "due"):
        assert stub.Rerank(request_of("q", "d", model=name), metadata=NARROW).results
        assert stub.Health(pb.HealthRequest(model=name), metadata=NARROW).model == "two"
    every = stub.ListModels(pb.ListModelsRequest(), metadata=[("authorization", "Bearer all-token")])
    assert [model.name for model in every.models] == ["one", "two"]


def test_a_model_that_is_not_there_and_one_that_is_anothers_are_told_apart_by_nobody(
    stub: rerank_pb2_grpc.RerankServiceStub,
) -> None:
    told = []
    for name in ("one", "uno", "", "three"):
        for ask, request in (
            (stub.Rerank, request_of("q", "d", model=name)),
            (stub.Health, pb.HealthRequest(model=name)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                ask(request, metadata=NARROW)
            trailers: Any = caught.value.trailing_metadata()
            told.append((caught.value.code(), message_of(caught.value), tuple(map(tuple, trailers))))
    assert len(set(told)) == 1
    assert told[0][0] is grpc.StatusCode.PERMISSION_DENIED


class Ahead:
    """The time of the system, which a test puts forward in place of waiting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, now = 0.0, time.time
        monkeypatch.setattr(time, "time", lambda: now() + self.seconds)


def test_a_token_is_refused_from_the_moment_that_it_expires(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    moment = datetime.now(UTC) + timedelta(days=30)
    settings = settings_of(f'[a]\ntoken = "a-token"\nexpires = {moment.isoformat()}\n')
    clock, metadata = Ahead(monkeypatch), [("authorization", "Bearer a-token")]
    caplog.set_level(logging.INFO)
    with serving(settings, runner=CountingRunner()) as server, channel_of(server.port) as channel:
        stub = rerank_pb2_grpc.RerankServiceStub(channel)
        clock.seconds = 30 * 86_400 - 60
        assert stub.Rerank(request_of("q", "d"), metadata=metadata).results
        clock.seconds += 61
        with pytest.raises(grpc.RpcError) as caught:
            stub.Rerank(request_of("q", "d"), metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert message_of(caught.value) == "the token of a has expired: the server's operator makes another"
    assert "a-token" not in logged(caplog)


def test_a_caller_that_is_taken_off_the_list_while_its_request_is_awaited_gets_nothing() -> None:
    runner, gone = CountingRunner(), threading.Event()

    def requests() -> Iterator[bytes]:
        assert gone.wait(WAIT)
        yield request_of("q", "d", model="one").SerializeToString()

    with serving(settings_of(), runner=runner) as server, channel_of(server.port) as channel:
        ask: Any = channel.stream_stream("/rerank.v1.RerankService/Rerank")
        call = ask(requests(), metadata=NARROW, timeout=WAIT)
        # It has been let in, and its request has not come.
        awaited = waiting_of(server, "a request (rerank)")
        wait_for(lambda: len(awaited) == 1)
        server.access._take(())
        gone.set()
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert message_of(caught.value).startswith("this caller may not call this model")
    assert runner.sequences == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_without_callers_the_admin_port_is_not_opened_to_other_machines(host: str) -> None:
    settings = ServerSettings(admin_host=host, port=0, admin_port=0)
    with pytest.raises(ConfigurationError, match=f"^--admin-host {host}: whoever reaches the admin port"):
        RerankServer(settings, loader=ScriptedLoader())


def test_with_callers_it_is_and_health_is_public_there() -> None:
    settings = replace(settings_of(), admin_host="0.0.0.0")
    with (
        serving(settings, runner=CountingRunner()) as server,
        channel_of(server.admin_port) as channel,
    ):
        status = HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        stub = rerank_pb2_grpc.ModelAdminServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.LoadModel(pb.LoadModelRequest(model="one"))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        for name in ("one", "three"):  # narrow has the right, but for another model
            with pytest.raises(grpc.RpcError) as caught:
                stub.LoadModel(pb.LoadModelRequest(model=name), metadata=NARROW)
            assert message_of(caught.value).startswith("narrow may not call this model")
        assert stub.LoadModel(pb.LoadModelRequest(model="due"), metadata=NARROW).model.name == "two"
