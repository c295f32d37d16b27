"""R25: every method with no token, a wrong one, an empty one, one outside ASCII, and two."""

from dataclasses import dataclass, replace

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from rerank_grpc.access.accepted import AccessList
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import Reason
from rerank_grpc.server import interceptors
from rerank_grpc.server.guard import Edge, Guard
from rerank_grpc.server.interceptors import AccessInterceptor
from rerank_grpc.server.server import RerankServer
from rerank_grpc.telemetry.records import CallRecord
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.stubs import HealthStub, ReflectionStub, message_of
from tests.support import CountingRunner, ScriptedLoader, channel_of, request_of, serving

TOKENS = ("first-token", "second-token")
WRONG = {
    "none": [],
    "wrong": [("authorization", "Bearer third-token")],
    "a prefix": [("authorization", "Bearer first-toke")],
    "empty": [("authorization", "Bearer ")],
    "no scheme": [("authorization", "first-token")],
    "another scheme": [("authorization", "Basic first-token")],
    "twice": [("authorization", "Bearer first-token")] * 2,
    "another header": [("x-api-key", "first-token")],
}
CALLS = {
    "Rerank": lambda stub, metadata: stub.Rerank(request_of("q", "d"), metadata=metadata),
    "StreamRerank": lambda stub, metadata: list(
        stub.StreamRerank(pb.StreamRerankRequest(query="q"), metadata=metadata)
    ),
    "ListModels": lambda stub, metadata: stub.ListModels(pb.ListModelsRequest(), metadata=metadata),
    "Health": lambda stub, metadata: stub.Health(pb.HealthRequest(), metadata=metadata),
}


@dataclass
class HandlerCallDetails:
    """What grpcio hands to an interceptor."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...]


@pytest.fixture(scope="module")
def channel():
    runner = CountingRunner()
    with (
        serving(replace(ServerSettings(), access_tokens=TOKENS), runner=runner) as server,
        channel_of(server.port) as channel,
    ):
        yield channel
        # Those of the two right tokens, which may have been asked for again.
        assert len({sequence for batch in runner.batches for sequence in batch}) == 2


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("method", CALLS)
def test_without_a_right_token_no_method_is_entered(channel: grpc.Channel, method: str, case: str):
    stub = rerank_pb2_grpc.RerankServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        CALLS[method](stub, WRONG[case])
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    message = message_of(caught.value)
    assert "token" in message or "authorization" in message
    assert "first" not in message


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_each_of_several_tokens_opens_every_method(channel: grpc.Channel, scheme: str):
    stub = rerank_pb2_grpc.RerankServiceStub(channel)
    assert stub.ListModels(
        pb.ListModelsRequest(), metadata=[("authorization", f"{scheme} first-token")]
    ).models
    assert stub.Health(pb.HealthRequest(), metadata=[("authorization", f"{scheme} second-token")]).model


def test_both_tokens_rerank(channel: grpc.Channel):
    stub = rerank_pb2_grpc.RerankServiceStub(channel)
    for number, token in enumerate(TOKENS):
        metadata = [("authorization", f"Bearer {token}")]
        assert stub.Rerank(request_of("q", f"document {number}"), metadata=metadata).results


def test_health_is_public_and_reflection_is_not(channel: grpc.Channel):
    check = HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert check.status == health_pb2.HealthCheckResponse.SERVING
    reflect = ReflectionStub(channel).ServerReflectionInfo
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as caught:
        list(reflect(iter([question])))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    answer = list(reflect(iter([question]), metadata=(("authorization", "Bearer first-token"),)))
    assert [service.name for service in answer[0].list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "rerank.v1.RerankService",
        "tei.v1.Info",
        "tei.v1.Predict",
        "tei.v1.Rerank",
    ]


@pytest.mark.parametrize(
    "value", ["Bearer tökén", "Bearer tökén".encode(), b"Bearer \xff\xfe", "Bearer \udcff", "", b""]
)
def test_a_token_outside_ascii_is_wrong_and_breaks_nothing(value: str | bytes):
    """grpcio's own client cannot send one, another may."""
    interceptor = AccessInterceptor(
        Edge(guard=Guard(AccessList(TOKENS))), {"/rerank.v1.RerankService/Rerank": "Rerank"}
    )
    details = HandlerCallDetails("/rerank.v1.RerankService/Rerank", (("authorization", value),))
    denied = interceptor.intercept_service(lambda _: pytest.fail("entered"), details)
    assert denied is not None


def test_refusals_are_kept_for_as_many_messages_as_there_may_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interceptors, "MOST_DENIALS", 1)
    methods = {f"/{method}": method for method in ("Rerank", "Health", "ListModels")}
    interceptor = AccessInterceptor(Edge(guard=Guard(AccessList(TOKENS))), methods)
    for path in methods:
        details = HandlerCallDetails(path, ())
        assert interceptor.intercept_service(lambda _: pytest.fail("entered"), details) is not None
        assert len(interceptor._denials) <= 2


def test_a_refusal_is_recorded_by_the_name_of_its_method_and_never_by_a_callers_text():
    records = list[CallRecord]()
    settings = replace(ServerSettings(), access_tokens=TOKENS, port=0, admin_port=None)
    server = RerankServer(settings, loader=ScriptedLoader(), sinks=[records.append])
    server.start()
    paths = {
        "/rerank.v1.RerankService/Rerank": "Rerank",
        "/tei.v1.Rerank/Rerank": "tei.Rerank",
        "/inference.GRPCInferenceService/ModelInfer": "kserve.ModelInfer",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "ServerReflectionInfo",
        "/rerank.v1.RerankService/canary": "other",
        "/canary/canary": "other",
    }
    try:
        with channel_of(server.port) as channel:
            for path in paths:
                call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"", metadata=(("x-request-id", "order-66"),))
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    finally:
        server.stop(0)
    assert [record.method for record in records] == list(paths.values())
    assert [record.protocol for record in records] == ["grpc", "tei", "kserve", "grpc", "grpc", "grpc"]
    assert {(record.code, record.reason) for record in records} == {
        ("UNAUTHENTICATED", Reason.UNAUTHENTICATED)
    }
    assert {record.ids.request_id for record in records} == {"order-66"}


ADMIN_CALLS = {
    "LoadModel": lambda stub, metadata: stub.LoadModel(
        pb.LoadModelRequest(model="embedded"), metadata=metadata
    ),
    "UnloadModel": lambda stub, metadata: stub.UnloadModel(
        pb.UnloadModelRequest(model="embedded"), metadata=metadata
    ),
}


@pytest.mark.parametrize("method", ADMIN_CALLS)
def test_where_tokens_are_set_the_admin_port_wants_one_too_but_for_probes(method: str):
    runner = CountingRunner()
    with (
        serving(replace(ServerSettings(), access_tokens=TOKENS), runner=runner) as server,
        channel_of(server.admin_port) as admin,
    ):
        stub = rerank_pb2_grpc.ModelAdminServiceStub(admin)
        for case in WRONG.values():
            with pytest.raises(grpc.RpcError) as caught:
                ADMIN_CALLS[method](stub, case)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        right = [("authorization", "Bearer first-token")]
        assert ADMIN_CALLS[method](stub, right).model.name == "embedded"
        check = HealthStub(admin).Check(health_pb2.HealthCheckRequest())
        assert check.status == health_pb2.HealthCheckResponse.SERVING
