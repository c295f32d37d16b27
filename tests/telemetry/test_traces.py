"""Traces as a collector gets them: a real receiver, real servers, real calls."""

import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import grpc
import pytest
from opentelemetry.sdk.resources import Resource

from rerank_grpc import __version__
from rerank_grpc.config.options import OptionError
from rerank_grpc.config.reading import drop_empty, read_traces_endpoint
from rerank_grpc.config.settings import EngineSettings, ServerSettings
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.protocols import tei_pb2 as tei
from rerank_grpc.sequence import Output, Sequence
from rerank_grpc.telemetry.ids import CallIds
from rerank_grpc.telemetry.records import CallRecord
from rerank_grpc.telemetry.traces import WallClock, is_state, make_traces
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.command import environment, run
from tests.ports import free_port
from tests.rest.support import get, post
from tests.support import (
    WAIT,
    CountingRunner,
    HeldRunner,
    channel_of,
    loaded_in,
    logged,
    request_of,
    stub_of,
    wait_for,
)
from tests.telemetry.receiver import Receiver, attributes, receiving, traced

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-00"
RPC = "rerank.v1.RerankService/Rerank"
STAGES = ["admission", "tokenize", "queue", "inference", "answer"]
CANARY = "cAnArY"
BODY = {"query": "q", "documents": ["one two", "three"]}
# Nothing listens at a port that the system keeps for itself.
NOBODY = "http://127.0.0.1:1"
TOKEN = "s3cret-token-of-the-test"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves no variable of the machine, and has spans sent at once."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def is_within(inner: object, outer: object) -> bool:
    begin, end = "start_time_unix_nano", "end_time_unix_nano"
    return bool(getattr(outer, begin) <= getattr(inner, begin) <= getattr(inner, end) <= getattr(outer, end))


def is_error(span: object) -> bool:
    """Tells a span's status, which never has a text."""
    status = span.status  # type: ignore[attr-defined]
    assert status.message == ""
    return bool(status.code == 2)


def test_the_trace_of_a_rest_call_has_every_stage_and_the_batch_that_it_is_linked_to():
    with receiving() as receiver, traced(make_traces(receiver.endpoint)) as system:
        began = time.time_ns()
        reply = post(system.rest_port, "/cohere/v2/rerank", BODY, traceparent=TRACEPARENT)
        ended = time.time_ns()
        assert reply.status == 200
        wait_for(lambda: len(receiver.spans) == 8)
    rest, rpc, batch = receiver.one("POST /v2/rerank"), receiver.one(RPC), receiver.one("batch")
    stages = receiver.below(rpc)
    assert [stage.name for stage in stages] == STAGES

    assert rest.trace_id.hex() == TRACE_ID
    assert rest.parent_span_id.hex() == SPAN_ID
    assert rpc.parent_span_id == rest.span_id
    assert {span.trace_id for span in (rpc, *stages)} == {rest.trace_id}
    assert reply.headers["traceparent"] == f"00-{TRACE_ID}-{rest.span_id.hex()}-01"

    assert began <= rest.start_time_unix_nano
    assert rest.end_time_unix_nano <= ended
    assert is_within(rpc, rest)
    assert all(is_within(stage, rpc) for stage in stages)
    assert all(one.end_time_unix_nano == two.start_time_unix_nano for one, two in pairwise(stages))

    assert batch.trace_id != rest.trace_id
    assert batch.parent_span_id == b""
    for span in (rpc, stages[3]):
        (link,) = span.links
        assert (link.trace_id, link.span_id) == (batch.trace_id, batch.span_id)
    assert not any(stage.links for stage in stages if stage.name != "inference")

    assert (rest.kind, rpc.kind, batch.kind, stages[0].kind) == (2, 2, 1, 1)
    assert not any(map(is_error, receiver.spans))
    assert attributes(rest) == {
        "http.request.method": "POST",
        "http.route": "/v2/rerank",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "gen_ai.operation.name": "rerank",
        "gen_ai.provider.name": "rerank-grpc",
        "gen_ai.request.model": "embedded",
        "gen_ai.usage.input_tokens": 9,
        "rerank.documents": 2,
        "rerank.dialect": attributes(rest)["rerank.dialect"],
    }
    assert attributes(rpc) == {
        "rpc.system.name": "grpc",
        "rpc.method": RPC,
        "rpc.response.status_code": "OK",
        "gen_ai.operation.name": "rerank",
        "gen_ai.provider.name": "rerank-grpc",
        "gen_ai.request.model": "embedded",
        "gen_ai.usage.input_tokens": 9,
        "rerank.documents": 2,
    }
    assert attributes(stages[1])["rerank.pairs"] == 2
    assert attributes(batch)["rerank.tokens"] == 9
    assert attributes(batch)["rerank.sequences"] == 2
    assert 0 < float(str(attributes(batch)["rerank.batch.fill_ratio"])) < 1


def test_calls_that_share_a_batch_are_linked_to_the_same_span():
    runner = HeldRunner()
    with receiving() as receiver, traced(make_traces(receiver.endpoint), runner=runner) as system:
        engine = loaded_in(system.server).engine
        with stub_of(system.server.port) as stub:
            first = stub.Rerank.future(request_of("q", "first"))
            runner.await_batch()
            others = [stub.Rerank.future(request_of("q", word)) for word in ("second", "third")]
            wait_for(lambda: engine.queued_tokens == 8)
            runner.let_all()
            for call in (first, *others):
                call.result(WAIT)
        wait_for(lambda: len(receiver.named("batch")) == 2 and len(receiver.named(RPC)) == 3)
    served: dict[bytes, int] = {}
    for call in receiver.named(RPC):
        (link,) = call.links
        served[link.span_id] = served.get(link.span_id, 0) + 1
    assert {batch.span_id for batch in receiver.named("batch")} == served.keys()
    assert sorted(served.values()) == [1, 2]


def test_a_call_over_grpc_lies_below_its_callers_span_or_begins_a_trace_that_its_line_names(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO, "rerank_grpc.calls")
    records: list[CallRecord] = []
    with (
        receiving() as receiver,
        traced(make_traces(receiver.endpoint), sinks=(records.append,)) as system,
        stub_of(system.server.port) as stub,
    ):
        stub.Rerank(request_of("q", "d"), metadata=(("traceparent", TRACEPARENT), ("tracestate", "a=1,b=2")))
        stub.Rerank(request_of("q", "e"))
        wait_for(lambda: len(receiver.named(RPC)) == 2)
    ours, own = receiver.named(RPC)
    assert (ours.trace_id.hex(), ours.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    assert ours.trace_state == "a=1,b=2"
    assert own.parent_span_id == b""
    assert [record.ids.trace_id for record in records] == [TRACE_ID, own.trace_id.hex()]


def test_a_call_whose_caller_does_not_sample_has_no_spans_and_neither_has_what_it_becomes():
    with receiving() as receiver, traced(make_traces(receiver.endpoint)) as system:
        with stub_of(system.server.port) as stub:
            stub.Rerank(request_of("q", "d"), metadata=(("traceparent", UNSAMPLED),))
        reply = post(system.rest_port, "/v1/rerank", BODY, traceparent=UNSAMPLED)
        assert reply.headers["traceparent"].startswith(f"00-{TRACE_ID}-")
        assert reply.headers["traceparent"].endswith("-00")
    assert {span.name for span in receiver.spans} == {"batch"}


def test_a_sampler_that_takes_nothing_takes_no_batch_either(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with receiving() as receiver, traced(make_traces(receiver.endpoint)) as system:
        assert post(system.rest_port, "/v1/rerank", BODY, traceparent=TRACEPARENT).status == 200
    assert receiver.spans == []


def test_probes_have_no_spans():
    with receiving() as receiver, traced(make_traces(receiver.endpoint)) as system:
        with stub_of(system.server.port) as stub:
            stub.Health(pb.HealthRequest())
            stub.ListModels(pb.ListModelsRequest())
        assert get(system.rest_port, "/health").status == 200
        connect = "/rerank.v1.RerankService/Health"
        assert post(system.rest_port, connect, {}, content_type="application/json").status == 200
    assert [span.name for span in receiver.spans] == ["rerank.v1.RerankService/ListModels"]


def test_a_stream_of_many_requests_has_the_stages_of_the_first_of_them():
    requests = [tei.RerankStreamRequest(query=f"q {n}", text="d", truncate=True) for n in range(40)]
    with (
        receiving() as receiver,
        traced(make_traces(receiver.endpoint)) as system,
        channel_of(system.server.port) as channel,
    ):
        call = channel.stream_unary(
            "/tei.v1.Rerank/RerankStream",
            tei.RerankStreamRequest.SerializeToString,
            tei.RerankResponse.FromString,
        )
        assert len(call(iter(requests)).ranks) == 40
    span = receiver.one("tei.v1.Rerank/RerankStream")
    assert attributes(span)["rerank.requests"] == 40
    assert len([each for each in receiver.below(span) if each.name == "inference"]) == 32
    assert len(span.links) == 40


# Calls that end early


def refused(receiver: Receiver, name: str = RPC) -> tuple[dict[str, object], list[str]]:
    """Returns the attributes of the one span of that name that has an error, and its broken stages."""
    (span,) = [span for span in receiver.named(name) if "error.type" in attributes(span)]
    broken = [stage.name for stage in receiver.below(span) if is_error(stage)]
    return {**attributes(span), "is_error": is_error(span)}, broken


def test_an_unknown_model_is_the_callers_error_in_the_stage_of_admission():
    with (
        receiving() as receiver,
        traced(make_traces(receiver.endpoint)) as system,
        stub_of(system.server.port) as stub,
        pytest.raises(grpc.RpcError),
    ):
        stub.Rerank(request_of("q", "d", model=CANARY))
    found, broken = refused(receiver)
    assert found["error.type"] == "unknown_model"
    assert found["rpc.response.status_code"] == "NOT_FOUND"
    assert "gen_ai.request.model" not in found
    assert not found["is_error"]
    assert broken == ["admission"]


def test_a_full_queue_is_a_refusal_in_the_stage_of_admission_over_rest_too():
    runner, engine = HeldRunner(), EngineSettings(max_queue_tokens=4)
    settings = replace(ServerSettings(), engine=engine)
    with (
        receiving() as receiver,
        traced(make_traces(receiver.endpoint), runner=runner, settings=settings) as system,
        stub_of(system.server.port) as stub,
    ):
        calls = [stub.Rerank.future(request_of("q", "first"))]
        runner.await_batch()
        calls.append(stub.Rerank.future(request_of("q", "second")))
        wait_for(lambda: loaded_in(system.server).engine.queued_tokens > 0)
        assert post(system.rest_port, "/v1/rerank", BODY).status == 429
        runner.let_all()
        for call in calls:
            call.result(WAIT)
    found, broken = refused(receiver)
    assert (found["error.type"], found["rpc.response.status_code"]) == ("queue_full", "RESOURCE_EXHAUSTED")
    assert broken == ["admission"]
    rest, _ = refused(receiver, "POST /v1/rerank")
    assert (rest["error.type"], rest["http.response.status_code"]) == ("queue_full", 429)
    assert not rest["is_error"]


def test_a_call_that_is_late_or_cancelled_breaks_the_stage_that_it_was_in():
    runner = HeldRunner()
    with (
        receiving() as receiver,
        traced(make_traces(receiver.endpoint), runner=runner) as system,
        stub_of(system.server.port) as stub,
    ):
        late = stub.Rerank.future(request_of(CANARY, "late"), timeout=3)  # so that it reaches the device
        runner.await_batch()
        cancelled = stub.Rerank.future(request_of(CANARY, "cancelled"))
        wait_for(lambda: loaded_in(system.server).engine.queued_tokens > 0)
        cancelled.cancel()
        with pytest.raises(grpc.RpcError):
            late.result(WAIT)
        wait_for(lambda: len(receiver.named(RPC)) == 2)
    kinds = {}
    for span in receiver.named(RPC):
        broken = [stage.name for stage in receiver.below(span) if is_error(stage)]
        assert receiver.below(span)[-1].end_time_unix_nano == span.end_time_unix_nano
        kinds[str(broken)] = attributes(span)["error.type"]
    assert kinds["['queue']"] == "cancelled"
    assert kinds["['inference']"] in ("deadline_exceeded", "cancelled")
    assert CANARY not in receiver.text


def test_a_failure_of_the_device_is_an_error_of_the_server_on_both_spans():
    def score(_sequence: Sequence) -> Output | None:
        raise RuntimeError(CANARY)

    with (
        receiving() as receiver,
        traced(make_traces(receiver.endpoint), runner=CountingRunner(score)) as system,
    ):
        assert post(system.rest_port, "/v1/rerank", BODY).status == 500
    found, broken = refused(receiver)
    assert (found["error.type"], found["is_error"], broken) == ("internal", True, ["inference"])
    rest, _ = refused(receiver, "POST /v1/rerank")
    assert (rest["error.type"], rest["is_error"]) == ("internal", True)
    assert CANARY not in receiver.text


def test_a_caller_without_a_token_makes_no_span():
    settings = replace(ServerSettings(), access_tokens=(TOKEN,))
    with receiving() as receiver, traced(make_traces(receiver.endpoint), settings=settings) as system:
        assert post(system.rest_port, "/v1/rerank", BODY, authorization="Bearer wrong").status == 401
        assert post(system.rest_port, "/v1/rerank", BODY, authorization=f"Bearer {TOKEN}").status == 200
    assert receiver.one("POST /v1/rerank")


# A collector that is away


@pytest.mark.clock
def test_a_collector_that_is_away_costs_no_call_anything_and_the_log_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    traces = make_traces(NOBODY)
    with traced(traces) as system, stub_of(system.server.port) as stub:
        stub.Rerank(request_of("q", "d"))
        wait_for(lambda: bool(warnings_of(caplog)))
        slowest = 0.0
        for number in range(200):
            began = time.monotonic()
            stub.Rerank(request_of("q", f"d {number}"), timeout=WAIT)
            slowest = max(slowest, time.monotonic() - began)
        began = time.monotonic()
        traces.close()
        assert time.monotonic() - began < 2
    assert slowest < 1
    (line,) = warnings_of(caplog)
    assert line.startswith(
        "no traces reach the collector at http://127.0.0.1:1 (UNAVAILABLE: failed to connect"
    )
    assert "refused" in line
    assert len(line) < 500


def test_the_reason_of_a_collector_is_told_without_the_headers_that_it_quotes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{CANARY}")
    with receiving() as receiver:
        receiver.refusal = f"not allowed:\n'Bearer {CANARY}' " + "and so on " * 100
        traces = make_traces(receiver.endpoint)
        traces.call(CallRecord("Rerank", CallIds(), seconds=0.1))
        wait_for(lambda: bool(warnings_of(caplog)))
        traces.close()
    (line,) = warnings_of(caplog)
    assert r"(PERMISSION_DENIED: not allowed:\n'…' and so on" in line
    assert len(line.encode()) < 500
    assert CANARY not in logged(caplog)


def test_a_collector_that_comes_back_gets_spans_and_a_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    with traced(make_traces(endpoint)) as system, stub_of(system.server.port) as stub:
        stub.Rerank(request_of("q", "d"))
        wait_for(lambda: bool(warnings_of(caplog)))
        with receiving(port) as receiver:

            def arrived() -> bool:
                stub.Rerank(request_of("q", "d"))
                return bool(receiver.spans)

            wait_for(arrived)
            wait_for(lambda: f"traces reach the collector at {endpoint} again" in caplog.text)
    assert len(warnings_of(caplog)) == 1


@pytest.mark.clock
def test_a_collector_that_never_answers_holds_up_the_end_for_no_longer_than_it_may(
    caplog: pytest.LogCaptureFixture,
):
    with receiving() as receiver:
        receiver.may_answer.clear()
        traces = make_traces(receiver.endpoint)
        for _ in range(2_000):
            traces.call(CallRecord("Rerank", CallIds(), seconds=0.1))
        began = time.monotonic()
        traces.close(0.3)
        assert time.monotonic() - began < 2
        assert len(warnings_of(caplog)) == 1
        traces.call(CallRecord("Rerank", CallIds(), seconds=0.1))
        traces.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("Otel")] == []


def test_calls_of_many_threads_all_reach_the_collector():
    with (
        receiving() as receiver,
        traced(make_traces(receiver.endpoint)) as system,
        stub_of(system.server.port) as stub,
        ThreadPoolExecutor(8) as pool,
    ):
        replies = pool.map(lambda n: stub.Rerank(request_of("q", f"d {n}")), range(100))
        assert len(list(replies)) == 100
    assert len(receiver.named(RPC)) == 100
    linked = {link.span_id for span in receiver.named(RPC) for link in span.links}
    assert linked == {batch.span_id for batch in receiver.named("batch")}


# Its configuration


def test_the_service_is_named_unless_the_variables_name_it(monkeypatch: pytest.MonkeyPatch):
    with receiving() as receiver:
        traces = make_traces(receiver.endpoint)
        traces.call(CallRecord("Rerank", CallIds()))
        traces.close(WAIT)
    assert receiver.resource["service.name"] == "rerank-grpc"
    assert receiver.resource["service.version"] == __version__
    monkeypatch.setenv("OTEL_SERVICE_NAME", "search")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=abc")
    with receiving() as receiver:
        traces = make_traces(receiver.endpoint)
        traces.call(CallRecord("Rerank", CallIds()))
        traces.close(WAIT)
    assert receiver.resource["service.name"] == "search"
    assert receiver.resource["deployment.environment.name"] == "test"
    assert receiver.metadata[0]["api-key"] == "abc"


@pytest.mark.parametrize(
    ("name", "value", "blamed"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", ""),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", ""),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/none", "OTEL_EXPORTER_OTLP_CERTIFICATE, …_CLIENT_KEY or …"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/", "OTEL_EXPORTER_OTLP_CERTIFICATE, …_CLIENT_KEY or …"),
        ("OTEL_EXPORTER_OTLP_HEADERS", f"Authorization: Bearer {CANARY}", ""),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", f"OTEL_{CANARY.upper()}", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("OTEL_RESOURCE_ATTRIBUTES", CANARY, ""),
        ("OTEL_TRACES_SAMPLER", "bogus", ""),
        ("OTEL_TRACES_SAMPLER_ARG", "7", ""),
        ("OTEL_TRACES_SAMPLER_ARG", "often", ""),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "-3", ""),
        ("OTEL_BSP_SCHEDULE_DELAY", "abc", ""),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1", ""),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "1", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", ""),
        ("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "maybe", ""),
        ("OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES", CANARY, "a variable that begins with OTEL_"),
    ],
)
def test_a_value_that_the_sdk_refuses_or_warns_of_is_one_line_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str, blamed: str
):
    caplog.set_level(logging.ERROR)  # a log that shows no warnings hides none from the check
    if name == "OTEL_TRACES_SAMPLER_ARG":
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        make_traces(NOBODY if "CERTIFICATE" not in name else "https://127.0.0.1:1")
    assert str(caught.value).startswith(f"tracing: OpenTelemetry refuses the value of {blamed or name}")
    assert "\n" not in str(caught.value)
    assert CANARY.lower() not in (str(caught.value) + logged(caplog)).lower()
    assert not caplog.records
    sdk = logging.getLogger("opentelemetry")
    assert (sdk.propagate, sdk.level, sdk.handlers) == (True, logging.NOTSET, [])


def test_lines_of_other_threads_are_logged_while_the_variables_are_checked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def look() -> Resource:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(logging.getLogger("opentelemetry.sdk.other").warning, "another thread's").result(WAIT)
        return Resource.get_empty()

    monkeypatch.setattr("rerank_grpc.telemetry.traces._resource", look)
    make_traces(NOBODY).close()
    assert warnings_of(caplog) == ["another thread's"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HEADERS": f"Authorization: Bearer {CANARY}"}, "OTEL_EXPORTER_OTLP_HEADERS: write NAME=VALUE,…"),
        ({"TRACES_HEADERS": CANARY}, "OTEL_EXPORTER_OTLP_TRACES_HEADERS: write NAME=VALUE,…"),
        ({"HEADERS": f"a=b,api key={CANARY}"}, "OTEL_EXPORTER_OTLP_HEADERS: write NAME=VALUE,…"),
        ({"HEADERS": f"a={CANARY}%0A"}, "OTEL_EXPORTER_OTLP_HEADERS: write NAME=VALUE,…"),
        ({"HEADERS": f'a="{CANARY}"'}, "OTEL_EXPORTER_OTLP_HEADERS: write NAME=VALUE,…"),
    ],
)
def test_malformed_headers_are_refused_before_the_sdk_prints_them(variables: dict[str, str], said: str):
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": NOBODY}
    with pytest.raises(OptionError) as caught:
        read_traces_endpoint(given | {f"OTEL_EXPORTER_OTLP_{name}": text for name, text in variables.items()})
    assert str(caught.value) == said


@pytest.mark.parametrize("text", ["a=b", " api-key = x y , b=c=d,", "authorization=Bearer%20abc", ""])
def test_headers_that_the_sdk_reads_are_taken(monkeypatch: pytest.MonkeyPatch, text: str):
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": NOBODY, "OTEL_EXPORTER_OTLP_HEADERS": text}
    assert read_traces_endpoint(variables) == NOBODY
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", text)
    make_traces(NOBODY).close()


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "collector", "grpc://c:4317", "http://", "//c:4317"])
def test_an_address_without_a_scheme_is_refused_unless_a_variable_says_what_it_means(endpoint: str):
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    said = "^OTEL_EXPORTER_OTLP_ENDPOINT: write http://HOST:PORT, or https:// for TLS$"
    with pytest.raises(OptionError, match=said):
        read_traces_endpoint(given)
    for insecure in ("OTEL_EXPORTER_OTLP_INSECURE", "OTEL_EXPORTER_OTLP_TRACES_INSECURE"):
        assert read_traces_endpoint({**given, insecure: "true"}) == endpoint
    with pytest.raises(OptionError, match=said.replace("OTLP", "OTLP_TRACES")):
        read_traces_endpoint({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint})


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HEADERS": f"Authorization: Bearer {CANARY}"}, "OTEL_EXPORTER_OTLP_HEADERS: write NAME=VALUE,…"),
        ({"SAMPLER": "bogus"}, "tracing: OpenTelemetry refuses the value of OTEL_TRACES_SAMPLER"),
        ({"LIMIT": "abc"}, "tracing: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be a non-negative integer"),
    ],
)
def test_a_server_whose_variables_are_refused_ends_with_one_line(variables: dict[str, str], said: str):
    names = {
        "HEADERS": "OTEL_EXPORTER_OTLP_HEADERS",
        "SAMPLER": "OTEL_TRACES_SAMPLER",
        "LIMIT": "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    }
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": NOBODY, "OTEL_BSP_SCHEDULE_DELAY": ""}
    given |= {names[name]: text for name, text in variables.items()}
    done = run("rest", "--rest-port", "0", "--metrics-port", "off", **given)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert CANARY not in done.stderr


def test_without_the_extra_a_server_says_in_one_line_that_tracing_needs_it():
    program = (
        'import sys; sys.modules["opentelemetry"] = None; from rerank_grpc.cli import main; '
        'sys.exit(main(["rest", "--rest-port", "0", "--metrics-port", "off"]))'
    )
    variables = environment(OTEL_EXPORTER_OTLP_ENDPOINT=NOBODY)
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=60
    )
    said = 'tracing needs opentelemetry.context, which is not installed: pip install "rerank-grpc[otel]", or '
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_variables_that_are_set_to_nothing_count_as_not_set(monkeypatch: pytest.MonkeyPatch):
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_EXPORTER_OTLP_HEADERS"):
        monkeypatch.setenv(name, " ")
    drop_empty("OTEL_")
    make_traces(NOBODY).close()


def test_traces_are_off_unless_a_variable_says_where_they_go():
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}
    assert read_traces_endpoint({}) is None
    assert read_traces_endpoint({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}) is None
    assert read_traces_endpoint(endpoint) == "http://c:4317"
    assert read_traces_endpoint({**endpoint, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t"}) == "http://t"
    assert read_traces_endpoint({**endpoint, "OTEL_TRACES_EXPORTER": "otlp"}) == "http://c:4317"
    assert read_traces_endpoint({**endpoint, "OTEL_SDK_DISABLED": "TRUE"}) is None
    assert read_traces_endpoint({**endpoint, "OTEL_TRACES_EXPORTER": "none"}) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(name: str, value: str):
    with pytest.raises(OptionError, match=f"^{name}: '{value}' is not offered"):
        read_traces_endpoint({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", name: value})
    assert read_traces_endpoint({name: value}) is None


# Its parts


def test_a_state_of_another_form_is_left_out_and_not_logged(caplog: pytest.LogCaptureFixture):
    assert is_state("a=1, tenant@vendor=x y")
    assert not any(map(is_state, ("", ",", "A=1", "a", "a=", f"a={CANARY}=", ",".join(["a=1"] * 33))))
    with receiving() as receiver:
        traces = make_traces(receiver.endpoint)
        traces.call(CallRecord("Rerank", CallIds("", TRACEPARENT, f"{CANARY} of no form"), seconds=0.1))
        traces.close(WAIT)
    assert receiver.one(RPC).trace_state == ""
    assert receiver.one(RPC).trace_id.hex() == TRACE_ID
    assert CANARY not in caplog.text


@pytest.mark.clock
def test_the_clock_tells_the_time_of_day_and_never_takes_two_moments_for_another_order():
    clock = WallClock()
    before = time.time_ns()
    now = time.monotonic()
    after = time.time_ns()
    assert before - 1_000_000 <= clock.nanoseconds(now) <= after + 1_000_000
    moments = [now + step / 1e6 for step in range(1_000)]
    assert sorted(map(clock.nanoseconds, moments)) == list(map(clock.nanoseconds, moments))


def test_the_clock_follows_when_somebody_sets_the_time(monkeypatch: pytest.MonkeyPatch):
    clock, hour = WallClock(), 3_600_000_000_000
    monkeypatch.setattr("rerank_grpc.telemetry.traces.time_ns", lambda: time.time_ns() + hour)
    assert clock.nanoseconds(time.monotonic()) - time.time_ns() == pytest.approx(hour, abs=60e9)
