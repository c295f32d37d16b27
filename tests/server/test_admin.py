"""The admin port: an operator loads and unloads models, and callers' ports know nothing of it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest

from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.registry import eviction
from rerank_grpc.server.server import RerankServer
from rerank_grpc.types import State
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.server.test_errors import details_of
from tests.support import (
    WAIT,
    CountingRunner,
    HeldRunner,
    channel_of,
    own_deadline,
    request_of,
    serving,
    stub_of,
    wait_for,
)

MODELS = (ModelSpec("one", "test"), ModelSpec("two", "test", aliases=("zwei",), lazy=True))
SETTINGS = replace(ServerSettings(), models=MODELS)


@pytest.fixture(autouse=True)
def _no_least_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets scripted models, whose loading takes no time, leave at once."""
    monkeypatch.setattr(eviction, "LEAST_STAY_SECONDS", 0.0)


@pytest.fixture
def server() -> Iterator[RerankServer]:
    with serving(SETTINGS, runner=CountingRunner()) as each:
        yield each


@pytest.fixture
def admin(server: RerankServer) -> Iterator[rerank_pb2_grpc.ModelAdminServiceStub]:
    with channel_of(server.admin_port) as channel:
        yield rerank_pb2_grpc.ModelAdminServiceStub(channel)


def states(server: RerankServer) -> dict[str, int]:
    with stub_of(server.port) as stub:
        return {info.name: info.state for info in stub.ListModels(pb.ListModelsRequest()).models}


def test_a_model_is_loaded_and_unloaded_by_name_or_alias(server, admin):
    assert states(server) == {"one": pb.MODEL_STATE_READY, "two": pb.MODEL_STATE_UNLOADED}
    loaded = admin.LoadModel(pb.LoadModelRequest(model="zwei"), timeout=WAIT).model
    assert (loaded.name, loaded.state, loaded.local_available) == ("two", pb.MODEL_STATE_READY, True)
    unloaded = admin.UnloadModel(pb.UnloadModelRequest(model="two"), timeout=WAIT).model
    assert (unloaded.name, unloaded.state) == ("two", pb.MODEL_STATE_UNLOADED)
    assert states(server)["two"] == pb.MODEL_STATE_UNLOADED


def test_an_unloaded_model_is_loaded_again_by_the_call_that_names_it(server, admin):
    for _ in range(2):
        admin.UnloadModel(pb.UnloadModelRequest(model="one"), timeout=WAIT)
        with stub_of(server.port) as stub:
            assert stub.Rerank(request_of("q", "d"), timeout=WAIT).model == "one"


def test_a_model_serves_for_as_long_as_it_took_to_load_however_often_it_is_unloaded(
    server, admin, monkeypatch
):
    monkeypatch.setattr(eviction, "LEAST_STAY_SECONDS", 300.0)
    with stub_of(server.port) as stub:
        for _ in range(2):
            with monkeypatch.context() as patch:
                own_deadline(patch, 0.2)
                with pytest.raises(grpc.RpcError) as caught:
                    admin.UnloadModel(pb.UnloadModelRequest(model="one"), timeout=WAIT)
            message, _ = details_of(caught.value)
            assert re.search(r"has just been loaded; it is unloaded in 2\d\d\.\d s", message.message)
            assert stub.Rerank(request_of("q", "d"), timeout=WAIT).model == "one"
    monkeypatch.setattr(eviction, "LEAST_STAY_SECONDS", 0.0)
    assert admin.UnloadModel(pb.UnloadModelRequest(model="one"), timeout=WAIT).model.name == "one"


def test_an_unload_waits_for_the_calls_in_progress():
    runner = HeldRunner()
    with (
        serving(SETTINGS, runner=runner) as server,
        stub_of(server.port) as stub,
        channel_of(server.admin_port) as channel,
    ):
        call = stub.Rerank.future(request_of("q", "d"))
        runner.await_batch()
        admin = rerank_pb2_grpc.ModelAdminServiceStub(channel)
        done = threading.Event()
        unload = admin.UnloadModel.future(pb.UnloadModelRequest(model="one"), timeout=WAIT)
        unload.add_done_callback(lambda _: done.set())
        wait_for(lambda: server.registry.info("one").state is State.UNLOADING)
        assert not done.is_set()
        runner.let_all()
        assert len(call.result(WAIT).results) == 1
        assert unload.result(WAIT).model.state == pb.MODEL_STATE_UNLOADED


@pytest.mark.parametrize("name", ["three", "../one", "https://example.com/one"])
def test_only_configured_models_can_be_named(admin, name):
    for method, request in (
        (admin.LoadModel, pb.LoadModelRequest(model=name)),
        (admin.UnloadModel, pb.UnloadModelRequest(model=name)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            method(request, timeout=WAIT)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        message, _ = details_of(caught.value)
        assert "known: one, two, zwei" in message.message


def test_an_operator_has_to_say_which_model(admin):
    with pytest.raises(grpc.RpcError) as caught:
        admin.UnloadModel(pb.UnloadModelRequest(), timeout=WAIT)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_callers_port_does_not_serve_it(server):
    with channel_of(server.port) as channel, pytest.raises(grpc.RpcError) as caught:
        rerank_pb2_grpc.ModelAdminServiceStub(channel).LoadModel(
            pb.LoadModelRequest(model="two"), timeout=WAIT
        )
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
