"""The record of a call: its line in the log, its sinks, and the ids that join it to other logs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import grpc
import pytest
from google.rpc import error_details_pb2

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import Reason
from rerank_grpc.server.call_log import CallRecord, Sink
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.rest.support import post, rest_server
from tests.server.test_errors import details_of
from tests.support import CountingRunner, ScriptedLoader, channel_of, request_of, serving, stub_of, wait_for

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "rerank_grpc.calls"]


@pytest.fixture
def server(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "rerank_grpc.calls")
    with serving(runner=CountingRunner()) as running:
        yield running


@contextmanager
def with_sinks(*sinks: Sink) -> Iterator[RerankServer]:
    settings = replace(ServerSettings(), port=0, admin_port=0)
    server = RerankServer(settings, loader=ScriptedLoader(CountingRunner(), settings.engine), sinks=sinks)
    server.start()
    try:
        assert server.wait_until_loaded(60)
        yield server
    finally:
        server.stop(5)


@pytest.mark.parametrize("method", ["Rerank", "StreamRerank"])
def test_a_calls_line_names_the_request_and_the_trace_that_its_caller_sent(
    method: str, server: RerankServer, caplog: pytest.LogCaptureFixture
):
    request = request_of("q", "d")
    metadata = (("x-request-id", "order-66"), ("traceparent", TRACEPARENT))
    with stub_of(server.port) as stub:
        if method == "Rerank":
            stub.Rerank(request, metadata=metadata)
        else:
            message = pb.StreamRerankRequest.FromString(request.SerializeToString())
            list(stub.StreamRerank(message, metadata=metadata))
    wait_for(lambda: bool(lines(caplog)))
    (line,) = lines(caplog)
    assert line.startswith(f"{method} OK documents=1 model=embedded tokens=4 ")
    assert f" request_id=order-66 trace_id={TRACE_ID} ms=" in line


def test_a_refusals_line_names_the_request_too(server: RerankServer, caplog: pytest.LogCaptureFixture):
    with stub_of(server.port) as stub, pytest.raises(grpc.RpcError):
        stub.Rerank(request_of("", "d"), metadata=(("x-request-id", "order-66"),))
    assert lines(caplog)[0].startswith(
        "Rerank INVALID_ARGUMENT documents=1 reason=INVALID_REQUEST request_id=order-66 ms="
    )


def test_the_line_of_a_message_that_cannot_be_parsed_names_the_request_too(
    server: RerankServer, caplog: pytest.LogCaptureFixture
):
    with channel_of(server.port) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/rerank.v1.RerankService/Rerank"
        )
        with pytest.raises(grpc.RpcError):
            call(b"\xff\xff", metadata=(("x-request-id", "order-66"),))
    assert "Rerank INVALID_ARGUMENT reason=INVALID_REQUEST request_id=order-66 ms=" in lines(caplog)[0]


def test_a_call_without_ids_has_a_line_without_them(server: RerankServer, caplog: pytest.LogCaptureFixture):
    with stub_of(server.port) as stub:
        stub.Rerank(request_of("q", "d"))
    wait_for(lambda: bool(lines(caplog)))
    assert "_id=" not in lines(caplog)[0]


def test_of_two_request_ids_the_first_counts(server: RerankServer, caplog: pytest.LogCaptureFixture):
    with stub_of(server.port) as stub:
        stub.Rerank(request_of("q", "d"), metadata=(("x-request-id", "one"), ("x-request-id", "two")))
    wait_for(lambda: bool(lines(caplog)))
    assert "request_id=one " in lines(caplog)[0]


def test_a_call_over_rest_is_logged_by_the_id_that_its_caller_got(
    server: RerankServer, caplog: pytest.LogCaptureFixture
):
    with rest_server(server.port) as port:
        reply = post(port, "/v1/rerank", {"query": "q", "documents": ["d"]})
    wait_for(lambda: any(line.startswith("Rerank OK") for line in lines(caplog)))
    (line,) = [line for line in lines(caplog) if line.startswith("Rerank OK")]
    assert f" request_id={reply.headers['x-request-id']} " in line


def test_every_sink_gets_the_record_of_each_call():
    first, second = list[CallRecord](), list[CallRecord]()
    with with_sinks(first.append, second.append) as server, stub_of(server.port) as stub:
        stub.Rerank(request_of("q", "one", "two"), metadata=(("traceparent", TRACEPARENT),))
        stub.Health(pb.HealthRequest())
        with pytest.raises(grpc.RpcError):
            stub.Rerank(request_of("q", "d", model="none"))
    scored, health, refused = first
    assert first == second
    assert (scored.method, scored.code, scored.documents) == ("Rerank", grpc.StatusCode.OK, 2)
    assert scored.summary is not None
    assert scored.summary.usage.input_tokens == 8
    assert 0 < scored.summary.usage.inference_seconds < scored.seconds
    assert scored.ids.trace_id == TRACE_ID
    assert (health.method, health.documents, health.summary) == ("Health", None, None)
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, Reason.UNKNOWN_MODEL)


def test_a_sink_that_raises_changes_no_answer_and_keeps_no_record_from_the_next(
    caplog: pytest.LogCaptureFixture,
):
    records = list[CallRecord]()

    def broken(_record: CallRecord) -> None:
        raise ValueError("canary")

    with with_sinks(broken, records.append) as server, stub_of(server.port) as stub:
        assert len(stub.Rerank(request_of("q", "d")).results) == 1
        message = pb.StreamRerankRequest.FromString(request_of("q", "d").SerializeToString())
        assert list(stub.StreamRerank(message))[-1].HasField("summary")
        with pytest.raises(grpc.RpcError) as caught:
            stub.Rerank(request_of("", "d"))
    status, _ = details_of(caught.value)
    info = error_details_pb2.ErrorInfo.FromString(status.details[0].value)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info.reason == "ERROR_REASON_INVALID_REQUEST"
    assert "canary" not in status.message
    assert [record.method for record in records] == ["Rerank", "StreamRerank", "Rerank"]
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [vars(record)["kind"] for record in failures] == ["a sink failed"] * 3
    assert failures[0].getMessage().startswith("a sink failed on a Rerank: ValueError at test_call_log.py:")
    assert "canary" not in caplog.text
