"""The record of a call: its line in the log, its sinks, and the ids that join it to other logs."""

import gc
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from rerank_grpc.cli.logs import BackgroundHandler, json_formatter
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import Reason
from rerank_grpc.server.lanes import SMALL_CAPACITY
from rerank_grpc.server.methods import TEXTS_CAPACITY
from rerank_grpc.server.server import RerankServer
from rerank_grpc.telemetry.call_log import log_call
from rerank_grpc.telemetry.ids import CallIds
from rerank_grpc.telemetry.records import CallRecord, Sink, log
from rerank_grpc.types import RerankSummary, Timeline, Usage
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.http2 import raw_connections
from tests.rest.support import post, rest_server
from tests.server.test_errors import details_of
from tests.support import (
    CountingRunner,
    HeldRunner,
    ScriptedLoader,
    call_lines,
    channel_of,
    request_of,
    serving,
    stub_of,
    wait_for,
)

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


def call_record(method: str = "Rerank", **values: Any) -> CallRecord:
    """A record of a call that began at second 100 and took one."""
    defaults: dict[str, Any] = {"ids": CallIds(), "started": 100.0, "seconds": 1.0}
    return CallRecord(method, **defaults | values)


def fields_of(record: CallRecord, caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """What machines read of a call, without time, level and logger."""
    caplog.set_level(logging.DEBUG, "rerank_grpc.calls")
    log_call(record)
    told = json.loads(json_formatter().format(caplog.records[-1]))
    assert told.pop("logger") == "rerank_grpc.calls"
    return {name: value for name, value in told.items() if name not in ("timestamp", "level")}


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
    wait_for(lambda: bool(call_lines(caplog)))
    (line,) = call_lines(caplog)
    assert line.startswith(f"{method} OK documents=1 model=embedded tokens=4 ")
    assert f" request_id=order-66 trace_id={TRACE_ID} ms=" in line


def test_a_refusals_line_names_the_request_too(server: RerankServer, caplog: pytest.LogCaptureFixture):
    with stub_of(server.port) as stub, pytest.raises(grpc.RpcError):
        stub.Rerank(request_of("", "d"), metadata=(("x-request-id", "order-66"),))
    assert call_lines(caplog)[0].startswith(
        "Rerank INVALID_ARGUMENT documents=1 model=embedded reason=invalid_request request_id=order-66 ms="
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
    assert "Rerank INVALID_ARGUMENT reason=invalid_request request_id=order-66 ms=" in call_lines(caplog)[0]


@pytest.mark.parametrize("metadata", [(), (("x-request-id", "no id at all"),)], ids=["none", "malformed"])
def test_a_call_without_an_id_gets_one_and_no_trace(
    metadata: tuple[tuple[str, str], ...], server: RerankServer, caplog: pytest.LogCaptureFixture
):
    with stub_of(server.port) as stub:
        for _ in range(2):
            stub.Rerank(request_of("q", "d"), metadata=metadata)
    wait_for(lambda: len(call_lines(caplog)) == 2)
    ids = [re.findall(r" request_id=([0-9a-f]{32}) ", line) for line in call_lines(caplog)]
    assert [len(found) for found in ids] == [1, 1]
    assert ids[0] != ids[1]
    assert "trace_id" not in call_lines(caplog)[0]


def test_of_two_request_ids_the_first_counts(server: RerankServer, caplog: pytest.LogCaptureFixture):
    with stub_of(server.port) as stub:
        stub.Rerank(request_of("q", "d"), metadata=(("x-request-id", "one"), ("x-request-id", "two")))
    wait_for(lambda: bool(call_lines(caplog)))
    assert "request_id=one " in call_lines(caplog)[0]


def test_a_call_over_rest_is_logged_by_the_id_that_its_caller_got(
    server: RerankServer, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG, "rerank_grpc.calls")
    with rest_server(server.port) as port:
        reply = post(port, "/v1/rerank", {"query": "q", "documents": ["d"]})
    wait_for(lambda: any(line.startswith("Rerank OK") for line in call_lines(caplog, logging.DEBUG)))
    (line,) = [line for line in call_lines(caplog, logging.DEBUG) if line.startswith("Rerank OK")]
    assert f" request_id={reply.headers['x-request-id']} " in line


# The fields of a line

STAGES = ("admission_ms", "tokenize_ms", "queue_ms", "inference_ms", "answer_ms")


def test_a_line_has_a_field_for_all_that_is_known(caplog: pytest.LogCaptureFixture):
    first = Timeline(100.0, "m", 100.1, 100.2, 100.3, 100.4, documents=1, tokens=4)
    second = Timeline(100.5, "m", 100.51, 100.53, 100.56, 100.6, documents=1, tokens=5)
    record = call_record(
        "tei.Rerank",
        ids=CallIds("order-66", TRACEPARENT),
        protocol="tei",
        documents=2,
        summary=RerankSummary("m", usage=Usage(input_tokens=9)),
        timelines=[first, second],
    )
    stages = dict(zip(STAGES, (110.0, 120.0, 130.0, 140.0, 400.0), strict=True))
    assert fields_of(record, caplog) == {
        "event": "call",
        "method": "tei.Rerank",
        "code": "OK",
        "protocol": "tei",
        "model": "m",
        "documents": 2,
        "tokens": 9,
        "request_id": "order-66",
        "trace_id": TRACE_ID,
        "ms": 1000.0,
        **stages,
    }


def test_a_call_that_failed_half_way_tells_what_it_had_come_to(caplog: pytest.LogCaptureFixture):
    timeline = Timeline(100.0, "m", 100.25, 100.5, documents=3, tokens=7)
    failed = call_record(code="RESOURCE_EXHAUSTED", reason=Reason.QUEUE_FULL, timelines=[timeline])
    told = fields_of(failed, caplog)
    assert (told["model"], told["tokens"], told["reason"]) == ("m", 7, "queue_full")
    assert [told[stage] for stage in STAGES] == [250.0, 250.0, 0.0, 0.0, 0.0]


def test_a_call_of_rest_tells_the_stages_that_its_answer_tells_of(caplog: pytest.LogCaptureFixture):
    usage = Usage(9, tokenization_seconds=0.25, queue_seconds=0.125, inference_seconds=0.5)
    told = fields_of(call_record("rerank", protocol="rest", summary=RerankSummary("m", "", usage)), caplog)
    assert (told["tokenize_ms"], told["queue_ms"], told["inference_ms"]) == (250.0, 125.0, 500.0)
    assert not {"admission_ms", "answer_ms"} & told.keys()
    failed = call_record("rerank", protocol="rest", code="UNAVAILABLE", reason=Reason.QUEUE_FULL)
    assert not set(STAGES) & fields_of(failed, caplog).keys()


def test_pairs_that_another_call_has_computed_cost_no_time(caplog: pytest.LogCaptureFixture):
    # Their batch had begun before this call asked for them, or there was none.
    for started in (99.0, 0.0):
        timeline = Timeline(100.0, "m", 100.0, 100.5, started, 100.5)
        told = fields_of(call_record(timelines=[timeline]), caplog)
        assert (told["queue_ms"], told["answer_ms"]) == (0.0, 500.0)


def test_a_line_of_rest_has_its_dialect_and_status(caplog: pytest.LogCaptureFixture):
    record = call_record("rerank", protocol="rest", dialect="voyage", status=429, code="RESOURCE_EXHAUSTED")
    told = fields_of(record, caplog)
    assert (told["dialect"], told["status"], told["code"]) == ("voyage", 429, "RESOURCE_EXHAUSTED")
    assert call_lines(caplog) == [
        "rerank 429 code=RESOURCE_EXHAUSTED ms=1000.0 protocol=rest dialect=voyage",
    ]


def test_probes_that_succeed_and_calls_that_rest_tells_of_are_for_debugging(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.DEBUG, "rerank_grpc.calls")
    told_by_rest = CallIds(told_by_rest=True)
    log_call(call_record("Health"))
    log_call(call_record(ids=told_by_rest))
    log_call(call_record(ids=told_by_rest, code="UNAVAILABLE", reason=Reason.QUEUE_FULL))
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    log_call(call_record("Health", code="NOT_FOUND", reason=Reason.UNKNOWN_MODEL))
    log_call(call_record(left=True))
    assert [record.levelno for record in caplog.records[3:]] == [logging.INFO] * 2
    assert " left=True " in call_lines(caplog)[1]


def test_refusals_of_a_kind_are_bounded_and_calls_that_succeed_are_not(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "rerank_grpc.calls")
    log_call(call_record())
    log_call(call_record(code="UNAVAILABLE", reason=Reason.QUEUE_FULL))
    log_call(call_record("other", protocol="rest", status=404, code="NOT_FOUND"))
    kinds = [vars(each).get("kind") for each in caplog.records]
    assert kinds == [None, "Rerank UNAVAILABLE queue_full", "other 404 None"]


def calls_of(run: Callable[[], None]) -> list[str]:
    """Lists the Python and C functions that this thread calls meanwhile."""
    called: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_qualname)
        elif event == "c_call":
            called.append(argument.__qualname__)

    before = sys.getprofile()
    gc.disable()  # what it collects may call much
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
        gc.enable()
    return called


def test_a_line_costs_its_call_little():
    handler = BackgroundHandler(str, for_people=False)
    handler.setFormatter(json_formatter())
    timeline = Timeline(100.0, "m", 100.1, 100.2, 100.3, 100.4, documents=1, tokens=4)
    record = call_record(ids=CallIds("order-66", TRACEPARENT), timelines=[timeline], documents=10)
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False
    try:
        log_call(record)
        calls = calls_of(lambda: log_call(record))
    finally:
        log.propagate = True
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()
    # Some 10 µs. Formatting is left to the thread of the handler.
    assert 10 < len(calls) <= 100, calls  # 78 of them
    assert not [name for name in calls if "format" in name.lower()]


# The sinks


def test_every_sink_gets_the_record_of_each_call():
    first, second = list[CallRecord](), list[CallRecord]()
    with with_sinks(first.append, second.append) as server, stub_of(server.port) as stub:
        stub.Rerank(request_of("q", "one", "two"), metadata=(("traceparent", TRACEPARENT),))
        stub.Health(pb.HealthRequest())
        with pytest.raises(grpc.RpcError):
            stub.Rerank(request_of("q", "d", model="none"))
    scored, health, refused = first
    assert first == second
    assert (scored.method, scored.code, scored.documents) == ("Rerank", "OK", 2)
    assert scored.summary is not None
    assert scored.summary.usage.input_tokens == 8
    assert 0 < scored.summary.usage.inference_seconds < scored.seconds
    assert scored.ids.trace_id == TRACE_ID
    assert (health.method, health.documents, health.summary) == ("Health", None, None)
    assert (refused.code, refused.reason) == ("NOT_FOUND", Reason.UNKNOWN_MODEL)


def test_a_stream_that_its_caller_leaves_is_cancelled():
    records = list[CallRecord]()
    message = pb.StreamRerankRequest.FromString(request_of("q", "d").SerializeToString())
    with with_sinks(records.append) as server:
        # The first part, which the headers go before, stays in the handler's hands.
        with raw_connections(server.port, 1, window=0) as (connection,):
            connection.call("/rerank.v1.RerankService/StreamRerank", message.SerializeToString())
            connection.receive_until(b"application/grpc")
            assert not records
        wait_for(lambda: bool(records))
    (record,) = records
    assert (record.left, record.code, record.reason) == (True, "CANCELLED", Reason.CANCELLED)


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


@pytest.mark.parametrize(
    ("path", "capacity"),
    [
        ("/grpc.health.v1.Health/Check", SMALL_CAPACITY),
        ("/rerank.v1.RerankService/StreamRerank", TEXTS_CAPACITY),
    ],
)
def test_each_call_whose_request_never_comes_is_recorded_once(path: str, capacity: int):
    records = list[CallRecord]()
    with with_sinks(records.append) as server:
        with raw_connections(server.port, 2) as connections:
            for connection in connections:
                for _ in range(90):
                    connection.call(path)
            wait_for(lambda: len(records) >= 180 - capacity)
            excess = {(record.method, record.code, record.reason) for record in records}
        wait_for(lambda: len(records) == 180)  # with those whose callers have left
    assert excess == {(path.rpartition("/")[2], "CANCELLED", Reason.CANCELLED)}
    # grpcio may tell of a call that ends before it tells that its caller has left.
    assert {record.code for record in records} <= {"CANCELLED", "INVALID_ARGUMENT"}


def test_a_call_whose_caller_leaves_while_it_waits_is_recorded_once_as_cancelled():
    records, runner = list[CallRecord](), HeldRunner()
    settings = replace(ServerSettings(), port=0, admin_port=None)
    server = RerankServer(settings, loader=ScriptedLoader(runner), sinks=[records.append])
    server.start()
    assert server.wait_until_loaded(60)
    with stub_of(server.port) as stub:
        inside = stub.Rerank.future(request_of("q", "d"))
        runner.await_batch()
        inside.cancel()
        wait_for(lambda: len(records) == 1)
        runner.let_all()
        assert stub.Rerank(request_of("q", "d")).results
    server.stop(5)
    assert [(record.code, record.reason) for record in records] == [
        ("CANCELLED", Reason.CANCELLED),
        ("OK", None),
    ]
