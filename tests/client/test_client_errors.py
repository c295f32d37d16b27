"""Each failed call becomes the exception that its status names."""

from __future__ import annotations

from types import ModuleType

import grpc
import pytest
from google.rpc import error_details_pb2

from rerank_grpc import client as exported
from rerank_grpc import errors
from rerank_grpc.client import (
    DeadlineExceeded,
    FieldViolation,
    InternalError,
    InvalidRequest,
    MessageTooLarge,
    PermissionDenied,
    QueueFull,
    Reason,
    RerankError,
    ServerUnavailable,
    TransportError,
    Unauthenticated,
    UnexpectedStatus,
)
from rerank_grpc.client.errors import exception_of
from rerank_grpc.config.targets import Proxy
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire.status import Failure
from tests.client.scripted_server import end, fail
from tests.stubs import status_code

Code = grpc.StatusCode


def test_the_reasons_are_those_of_the_contract_and_each_has_a_class():
    assert {reason.value for reason in Reason} == set(pb.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED"}
    assert set(errors.BY_REASON) == set(Reason)


def test_every_exception_of_a_call_is_exported_and_stands_in_the_tree():
    def below(error):
        return {error}.union(*(below(child) for child in error.__subclasses__()))

    drawn = errors.__doc__ + exported.errors.__doc__
    for error in below(RerankError):
        assert getattr(exported, error.__name__) is error
        assert error.__name__ in exported.__all__
        assert error.__name__ in drawn


def test_a_star_import_gives_the_exported_names_and_no_module():
    given: dict[str, object] = {}
    exec("from rerank_grpc.client import *", given)
    del given["__builtins__"]
    assert set(given) == set(exported.__all__)
    assert not [name for name, value in given.items() if isinstance(value, ModuleType)]


@pytest.mark.parametrize("method", ["rerank", "stream_rerank"])
@pytest.mark.parametrize("reason", list(Reason))
def test_a_reason_becomes_its_class_whatever_the_code(client, server, method, reason):
    server.script.append(fail(Code.ABORTED, "why", reason=reason, metadata={"model": "m"}))
    with pytest.raises(RerankError) as caught:
        list(getattr(client, method)("q", ["a"]))
    assert type(caught.value) is errors.BY_REASON[reason]
    assert caught.value.reason is reason
    assert (caught.value.message, str(caught.value)) == ("why", "why")
    assert caught.value.metadata == {"model": "m"}
    assert caught.value.retry_after is None
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert caught.value.__cause__.code() is Code.ABORTED


def test_a_refusal_carries_its_delay_and_the_fields_that_are_wrong(connect, server):
    client = connect(server.target, retries=0)
    violation = error_details_pb2.BadRequest.FieldViolation(field="documents[3].text", description="too long")
    server.script.append(
        fail(
            Code.INVALID_ARGUMENT,
            reason=Reason.INVALID_REQUEST,
            details=[error_details_pb2.BadRequest(field_violations=[violation])],
        )
    )
    server.script.append(fail(Code.RESOURCE_EXHAUSTED, reason=Reason.QUEUE_FULL, retry_after=1.25))
    with pytest.raises(InvalidRequest) as invalid:
        client.rerank("q", ["a"])
    assert invalid.value.violations == (FieldViolation("documents[3].text", "too long"),)
    with pytest.raises(QueueFull) as full:
        client.rerank("q", ["a"])
    assert full.value.retry_after == 1.25


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.UNAVAILABLE, ServerUnavailable),
        (Code.DEADLINE_EXCEEDED, DeadlineExceeded),
        (Code.CANCELLED, UnexpectedStatus),
        (Code.RESOURCE_EXHAUSTED, UnexpectedStatus),
        (Code.UNAUTHENTICATED, Unauthenticated),
        (Code.PERMISSION_DENIED, PermissionDenied),
        (Code.UNIMPLEMENTED, UnexpectedStatus),
        (Code.INTERNAL, UnexpectedStatus),
        (Code.UNKNOWN, UnexpectedStatus),
        (Code.INVALID_ARGUMENT, UnexpectedStatus),
        (Code.DATA_LOSS, UnexpectedStatus),
    ],
)
@pytest.mark.parametrize("domain", [None, "googleapis.com"])
def test_a_status_without_this_services_error_info_is_read_by_its_code(
    connect, server, code, expected, domain
):
    foreign = {} if domain is None else {"reason": "ERROR_REASON_QUEUE_FULL", "domain": domain}
    server.script.append(fail(code, **foreign))
    with pytest.raises(RerankError) as caught:
        connect(server.target, retries=0).rerank("q", ["a"])
    assert type(caught.value) is expected
    assert caught.value.retry_after is None


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.INVALID_ARGUMENT, InvalidRequest),
        (Code.UNAVAILABLE, ServerUnavailable),
        (Code.RESOURCE_EXHAUSTED, UnexpectedStatus),
        (Code.UNAUTHENTICATED, Unauthenticated),
        (Code.NOT_FOUND, UnexpectedStatus),
    ],
)
def test_a_reason_newer_than_this_client_degrades_by_its_code(connect, server, code, expected):
    server.script.append(
        fail(code, reason="ERROR_REASON_FROM_THE_FUTURE", metadata={"a": "b"}, retry_after=2)
    )
    with pytest.raises(RerankError) as caught:
        connect(server.target, retries=0).rerank("q", ["a"])
    assert type(caught.value) is expected
    assert caught.value.metadata == {"a": "b"}


@pytest.mark.parametrize(
    "text",
    [
        "SERVER: Received message larger than max (9437230 vs. 8388608)",
        "CLIENT: Sent message larger than max (9437230 vs. 8388608)",
        "grpc: received message larger than max (9437230 vs. 8388608)",
        "grpc: received message after decompression larger than max 8388608",
        "trying to send message larger than max (9437230 vs. 8388608)",
        "Received message that decompresses to a size larger than 8388608",
        "gRPC message exceeds maximum size 8388608: 9437230",
        "message too large 9437230 > 8388608",
        "Received message exceeds the maximum configured message size.",
        "message size 9437230 is larger than configured readMaxBytes 8388608",
    ],
)
def test_a_message_too_large_is_told_by_the_words_of_grpcs_libraries(client, server, text):
    server.script.append(fail(Code.RESOURCE_EXHAUSTED, text))
    with pytest.raises(MessageTooLarge):
        client.rerank("q", ["a"])
    assert len(server.calls) == 1


@pytest.mark.parametrize("text", ["", "rate limit exceeded", "message rate exceeds the maximum: slow down"])
def test_a_proxys_rate_limit_is_no_message_too_large(client, server, text):
    server.script.append(fail(Code.RESOURCE_EXHAUSTED, text))
    with pytest.raises(UnexpectedStatus) as caught:
        client.rerank("q", ["a"])
    assert caught.value.code == "RESOURCE_EXHAUSTED"


def test_a_call_that_the_server_ended_is_not_said_to_be_cancelled_by_its_caller(client, server):
    server.otherwise = end
    with pytest.raises(UnexpectedStatus, match="the server or a proxy ended the call") as caught:
        client.rerank("q", ["a"])
    assert caught.value.code == "CANCELLED"
    assert status_code(caught.value.__cause__) is Code.CANCELLED


def test_a_stream_that_the_server_ended_is_an_error_after_its_results(client, server):
    def one_then_end(request, context):
        yield pb.StreamRerankResponse(results=[pb.RerankResult(index=7)])
        end(request, context)

    server.script.append(one_then_end)
    stream = client.stream_rerank("q", ["a"])
    assert next(stream).index == 7
    with pytest.raises(UnexpectedStatus, match="the server or a proxy ended the call"):
        next(stream)


def test_errors_without_a_known_reason_share_a_base_and_have_none():
    for error in (ServerUnavailable("a"), MessageTooLarge("b"), UnexpectedStatus("c", code="UNKNOWN")):
        assert isinstance(error, TransportError)
        assert error.reason is None


def test_details_that_cannot_be_parsed_count_as_absent(client, server):
    def garbage(_request, context):
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(Code.INTERNAL, "broken")

    server.script.append(garbage)
    with pytest.raises(UnexpectedStatus, match="INTERNAL: broken"):
        client.rerank("q", ["a"])


def test_a_fault_of_the_server_is_an_internal_error(client, server):
    server.script.append(fail(Code.INTERNAL, "internal error", reason=Reason.INTERNAL))
    with pytest.raises(InternalError, match="internal error"):
        client.list_models()


def test_a_request_over_eight_mebibytes_is_too_large_and_never_sent(client, server):
    with pytest.raises(MessageTooLarge):
        client.rerank("q", ["x" * (9 << 20)])
    assert server.calls == []


def test_a_lost_server_behind_a_proxy_names_the_proxy():
    proxy = Proxy("proxy.example:3128", "rerank.example", "https_proxy", "no_proxy")
    error = exception_of(Failure(Code.UNAVAILABLE, "Socket closed"), proxy)
    assert isinstance(error, ServerUnavailable)
    assert "through the proxy proxy.example:3128 of https_proxy" in str(error)
