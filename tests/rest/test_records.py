"""The record of each REST call: what it was, how it ended, and that it is told once."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import QueueFull, Reason
from rerank_grpc.http.protocol import NO_PROGRESS_SECONDS
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest.dialects import BY_PATH, PREFIXES, RULES
from rerank_grpc.rest.errors import STATUSES
from rerank_grpc.rest.recorder import CODE_OF_STATUS, MOST_NAMES, Recorder
from rerank_grpc.rest.upstream import Upstream
from rerank_grpc.server.server import RerankServer
from rerank_grpc.telemetry.ids import PROCESS_ID, PROCESS_KEY, CallIds
from rerank_grpc.telemetry.records import CallRecord
from rerank_grpc.types import RerankSummary
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.client.scripted_server import ScriptedServer, fail, scored
from tests.rest.golden import callers, exchanges
from tests.rest.support import LoopClock, Reply, call, get, post, rest_server
from tests.rest.test_rest_connections import connect, request
from tests.support import WAIT, CountingRunner, HeldRunner, ScriptedLoader, logged, serving, wait_for

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACE = f"00-{TRACE_ID}-b7ad6b7169203331-01"
BODY = {"query": "q", "documents": ["one", "two"]}
CONNECT = "/rerank.v1.RerankService"
PROTO = "application/proto"
CANARY = "CANARY"
DIALECTS = {dialect.name for _, dialect, _ in RULES} | {dialect.name for dialect in BY_PATH.values()}
DIALECTS |= {dialect.name for forced in PREFIXES.values() for dialect in forced}


@dataclass
class Told:
    """A REST server's port, and the records that its sink has got."""

    port: int
    records: list[CallRecord]

    def one(self) -> CallRecord:
        """Returns the only record since the last look."""
        (record,) = self.records
        self.records.clear()
        return record


@contextlib.contextmanager
def told(*ports: int, **options: Any) -> Iterator[Told]:
    records = list[CallRecord]()
    with rest_server(*ports, sinks=(records.append,), **options) as port:
        yield Told(port, records)


@pytest.fixture
def rest(scripted: RerankServer) -> Iterator[Told]:
    with told(scripted.port) as telling:
        yield telling


def outcome(record: CallRecord) -> tuple[str, str, Reason | None, int]:
    return record.method, record.code, record.reason, record.status


def test_a_call_has_one_record_with_all_that_is_known(rest: Told) -> None:
    assert post(rest.port, "/v1/rerank", BODY, x_request_id="id-1", traceparent=TRACE).status == 200
    record = rest.one()
    assert outcome(record) == ("rerank", "OK", None, 200)
    assert (record.protocol, record.dialect, record.documents) == ("rest", "superset", 2)
    assert record.summary is not None
    assert (record.model, record.summary.usage.input_tokens) == ("embedded", 8)
    assert (record.ids.request_id, record.ids.trace_id) == ("id-1", TRACE_ID)
    assert 0 < record.summary.usage.inference_seconds < record.seconds < WAIT
    assert not record.left
    assert record.timelines == []


def test_the_record_is_there_before_the_answer(rest: Told) -> None:
    for _ in range(20):
        post(rest.port, "/v1/rerank", BODY)
        rest.one()


def test_a_call_without_an_id_is_recorded_by_the_one_that_its_caller_got(rest: Told) -> None:
    reply = post(rest.port, "/v1/rerank", BODY)
    assert rest.one().ids.request_id == reply.headers["x-request-id"]


@pytest.mark.parametrize("caller", callers())
def test_every_dialect_is_one_of_a_fixed_set(rest: Told, caller: str) -> None:
    for exchange in exchanges(caller):
        method, headers = exchange.get("method", "POST"), exchange.get("headers")
        reply = call(rest.port, method, exchange["path"], exchange.get("body"), headers)
        record = rest.one()
        assert record.status == reply.status
        assert record.dialect in DIALECTS | {"connect", ""}
        failed = reply.status >= 400 or b'"code":-1' in reply.raw  # as text-pairs tells errors, with 200
        assert (record.code == "OK") is not failed
        if record.method == "rerank":
            assert record.dialect


@pytest.mark.parametrize(
    ("path", "body", "dialect", "documents"),
    [
        ("/v1/rerank", BODY, "superset", 2),
        ("/tei/rerank", {"query": "q", "texts": ["a", "b", "c"]}, "tei", 3),
        ("/predict", {"inputs": [["q", "a"], ["p", "b"]]}, "tei-predict", 2),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a"}]}, "nim", 1),
        ("/fastgpt/v1/rerank", BODY, "fastgpt", 2),
    ],
)
def test_the_dialect_and_the_documents_are_those_of_the_body(
    rest: Told, path: str, body: Any, dialect: str, documents: int
) -> None:
    assert post(rest.port, path, body).status == 200
    record = rest.one()
    assert (record.method, record.dialect, record.documents) == ("rerank", dialect, documents)


def test_several_queries_are_one_call_whose_costs_are_added(rest: Told) -> None:
    body = {"text_1": ["p", "q", "p", "r"], "text_2": ["a", "b", "c", "d"]}
    assert post(rest.port, "/score", body).status == 200
    record = rest.one()
    assert record.summary is not None
    assert (record.documents, record.summary.usage.input_tokens) == (4, 16)
    assert record.summary.usage.inference_seconds > 0


def test_no_documents_are_no_failure_where_the_dialect_answers_them(rest: Told) -> None:
    assert post(rest.port, "/fastgpt/v1/rerank", BODY | {"documents": []}).json == {"results": []}
    record = rest.one()
    assert outcome(record) == ("rerank", "OK", None, 200)
    assert (record.model, record.documents or 0) == ("", 0)


# Calls of Connect


def test_a_call_of_connect_is_recorded_in_json_and_in_protobuf(rest: Told) -> None:
    message = pb.RerankRequest(
        query="q", documents=[{"text": "one"}, {"text": "two"}], model="embedded", top_n=1
    )
    bodies = {
        "application/json": {"query": "q", "documents": [{"text": "one"}, {"text": "two"}], "topN": 1},
        PROTO: message.SerializeToString(),
    }
    for content_type, body in bodies.items():
        assert post(rest.port, f"{CONNECT}/Rerank", body, content_type=content_type).status == 200
        record = rest.one()
        assert outcome(record) == ("Rerank", "OK", None, 200)
        assert record.summary is not None
        assert (record.dialect, record.documents, record.model) == ("connect", 2, "embedded")
        assert record.summary.usage.input_tokens == 8


@pytest.mark.parametrize("method", ["ListModels", "Health"])
def test_a_question_over_connect_has_its_methods_name(rest: Told, method: str) -> None:
    assert post(rest.port, f"{CONNECT}/{method}", {}, content_type="application/json").status == 200
    record = rest.one()
    assert outcome(record) == (method, "OK", None, 200)
    assert (record.dialect, record.summary, record.model) == ("connect", None, "")


def test_a_method_that_connect_does_not_offer_is_other(rest: Told) -> None:
    assert post(rest.port, f"{CONNECT}/{CANARY}", {}, content_type="application/json").status == 501
    assert outcome(rest.one()) == ("other", "UNIMPLEMENTED", None, 501)
    path, streaming = f"{CONNECT}/{CANARY}", "application/connect+json"
    assert post(rest.port, path, b"", content_type=streaming).status == 200
    assert outcome(rest.one()) == ("other", "UNIMPLEMENTED", None, 200)


def test_a_message_that_is_none_is_recorded_as_the_server_refuses_it(rest: Told) -> None:
    post(rest.port, f"{CONNECT}/Rerank", BODY, content_type="application/json")
    rest.one()
    for message in (b"\xff\xff\xff", b"\x0a\xff", b"\x0a\x02\xff\xfe", b"\x1a\x00" * 100_000):
        assert post(rest.port, f"{CONNECT}/Rerank", message, content_type=PROTO).status == 400
        record = rest.one()
        assert outcome(record) == ("Rerank", "INVALID_ARGUMENT", Reason.INVALID_REQUEST, 400)
        assert record.documents is None


# Discovery, and paths that are none


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/", "info"),
        ("/health", "health"),
        ("/ping", "health"),
        ("/v1/cluster/auth", "info"),
        ("/v1/models", "models"),
        ("/v1/models/embedded", "models"),
        ("/models", "models"),
        ("/info", "info"),
        ("/.well-known/live", "live"),
        ("/.well-known/ready", "ready"),
        ("/tei/info", "info"),
    ],
)
def test_a_question_has_a_fixed_name(rest: Told, path: str, method: str) -> None:
    status = get(rest.port, path).status
    assert status < 300
    record = rest.one()
    assert outcome(record) == (method, "OK", None, status)
    assert record.dialect == ("tei" if path.startswith("/tei") else "")
    assert (record.documents, record.model) == (None, "")
    assert record.is_probe == (method in ("health", "live", "ready"))


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", f"/{CANARY}", 404, "NOT_FOUND"),
        ("POST", f"/v1/{CANARY}", 404, "NOT_FOUND"),
        ("GET", "/v1/rerank", 405, "UNIMPLEMENTED"),
        (CANARY, "/v1/rerank", 405, "UNIMPLEMENTED"),
    ],
)
def test_a_path_or_method_that_is_none_is_other(
    rest: Told, method: str, path: str, status: int, code: str
) -> None:
    assert call(rest.port, method, path).status == status
    record = rest.one()
    assert outcome(record) == ("other", code, None, status)
    assert CANARY not in repr(record)


def test_an_unknown_model_of_a_question_is_its_refusal(rest: Told) -> None:
    assert get(rest.port, f"/v1/models/{CANARY}").status == 404
    record = rest.one()
    assert outcome(record) == ("models", "NOT_FOUND", Reason.UNKNOWN_MODEL, 404)
    assert CANARY not in repr(record)


# Refusals and faults


def test_every_error_has_a_status_that_stands_for_a_code() -> None:
    assert set(STATUSES.values()) <= CODE_OF_STATUS.keys()
    assert {getattr(grpc.StatusCode, name).name for name in CODE_OF_STATUS.values()}


@pytest.mark.parametrize(
    ("body", "headers", "code", "reason", "status"),
    [
        (b"{", {}, "INVALID_ARGUMENT", Reason.INVALID_REQUEST, 400),
        (BODY | {"query": ""}, {}, "INVALID_ARGUMENT", Reason.INVALID_REQUEST, 400),
        (BODY | {"model": CANARY}, {}, "NOT_FOUND", Reason.UNKNOWN_MODEL, 404),
        (b"x" * (LIMITS.body_bytes + 1), {}, "RESOURCE_EXHAUSTED", None, 413),
        (BODY, {"content_encoding": "gzip"}, "INVALID_ARGUMENT", None, 415),
        (BODY, {"x_request_timeout": "never"}, "INVALID_ARGUMENT", Reason.INVALID_REQUEST, 400),
    ],
)
def test_a_refusal_is_recorded(
    rest: Told, body: Any, headers: dict[str, str], code: str, reason: Reason | None, status: int
) -> None:
    assert post(rest.port, "/v1/rerank", body, **headers).status == status
    record = rest.one()
    assert outcome(record) == ("rerank", code, reason, status)
    assert record.summary is None
    assert CANARY not in repr(record)


def test_a_call_without_an_accepted_token_is_recorded(scripted: RerankServer) -> None:
    with told(scripted.port, tokens=("secret",)) as guarded:
        for path, method in (("/v1/rerank", "rerank"), (f"{CONNECT}/Rerank", "other")):
            assert post(guarded.port, path, BODY, x_api_key=CANARY).status == 401
            record = guarded.one()
            assert outcome(record) == (method, "UNAUTHENTICATED", Reason.UNAUTHENTICATED, 401)
            assert CANARY not in repr(record)
        assert get(guarded.port, "/v1/models").status == 401
        assert outcome(guarded.one()) == ("models", "UNAUTHENTICATED", Reason.UNAUTHENTICATED, 401)


@pytest.mark.parametrize(
    ("code", "reason", "told_code", "status"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.QUEUE_FULL, "RESOURCE_EXHAUSTED", 429),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.DEADLINE_UNREACHABLE, "RESOURCE_EXHAUSTED", 504),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.RATE_LIMITED, "RESOURCE_EXHAUSTED", 429),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.PAIR_TOO_LARGE, "RESOURCE_EXHAUSTED", 413),
        (grpc.StatusCode.UNAVAILABLE, Reason.MODEL_LOADING, "UNAVAILABLE", 503),
        (grpc.StatusCode.FAILED_PRECONDITION, Reason.MODEL_FAILED, "FAILED_PRECONDITION", 503),
        (grpc.StatusCode.UNAVAILABLE, Reason.SHUTTING_DOWN, "UNAVAILABLE", 503),
        (grpc.StatusCode.PERMISSION_DENIED, Reason.PERMISSION_DENIED, "PERMISSION_DENIED", 403),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", 504),
        (grpc.StatusCode.INTERNAL, Reason.INTERNAL, "INTERNAL", 500),
        # Without a reason it is gRPC's own, or a proxy's.
        (grpc.StatusCode.CANCELLED, None, "UNAVAILABLE", 503),
        (grpc.StatusCode.DATA_LOSS, None, "INTERNAL", 500),
    ],
)
def test_an_error_of_the_server_is_recorded_with_its_code_and_reason(
    code: grpc.StatusCode, reason: Reason | None, told_code: str, status: int
) -> None:
    server = ScriptedServer(otherwise=fail(code, CANARY, reason=reason and reason.value))
    server.start()
    try:
        with told(server.port) as rest:
            assert post(rest.port, "/v1/rerank", BODY).status == status
            record = rest.one()
    finally:
        server.stop()
    assert outcome(record) == ("rerank", told_code, reason, status)
    assert record.documents == 2
    assert CANARY not in repr(record)


def test_a_server_that_is_away_is_recorded(refusing: int) -> None:
    with told(refusing) as rest:
        assert post(rest.port, "/v1/rerank", BODY, x_request_timeout="20").status == 503
        assert outcome(rest.one()) == ("rerank", "UNAVAILABLE", None, 503)
        assert get(rest.port, "/health").status == 503
        assert outcome(rest.one()) == ("health", "UNAVAILABLE", None, 503)


def test_an_unready_model_is_recorded_as_unavailable() -> None:
    server = ScriptedServer()
    server.script.append(lambda *_: pb.HealthResponse(model="embedded", state=pb.MODEL_STATE_LOADING))
    server.start()
    try:
        with told(server.port) as rest:
            assert get(rest.port, "/health").status == 503
            assert outcome(rest.one()) == ("health", "UNAVAILABLE", None, 503)
    finally:
        server.stop()


def test_a_fault_of_ours_is_recorded_without_its_text(
    scripted: RerankServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError(CANARY)

    monkeypatch.setattr(Upstream, "rerank_all", fail)
    with told(scripted.port) as rest:
        assert post(rest.port, "/v1/rerank", BODY).status == 500
        record = rest.one()
    assert outcome(record) == ("rerank", "INTERNAL", Reason.INTERNAL, 500)
    assert CANARY not in repr(record)


def test_a_body_without_room_is_recorded(scripted: RerankServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise QueueFull("too many bytes of requests are being answered")

    monkeypatch.setattr("rerank_grpc.rest.body.Charge.take", full)
    with told(scripted.port) as rest:
        assert post(rest.port, "/v1/rerank", BODY).status == 429
        assert outcome(rest.one()) == ("rerank", "RESOURCE_EXHAUSTED", Reason.QUEUE_FULL, 429)


@pytest.mark.parametrize("path", ["/v1/rerank", f"{CONNECT}/Rerank"])
def test_a_caller_who_leaves_is_recorded_once(path: str) -> None:
    runner = HeldRunner()
    body = {"query": "q", "documents": [{"text": "d"}]}
    with serving(runner=runner) as server, told(server.port) as rest:
        connection = connect(rest.port, request(body, "Content-Type: application/json", path=path))
        runner.await_batch()
        assert rest.records == []
        connection.close()
        wait_for(lambda: bool(rest.records))
        record = rest.one()
        assert record.left
        assert (record.code, record.reason, record.status) == ("CANCELLED", Reason.CANCELLED, 499)
        runner.let_all()
        post(rest.port, "/v1/rerank", BODY)
        assert not rest.one().left


def test_a_caller_who_leaves_amid_its_body_is_recorded(rest: Told) -> None:
    connection = connect(rest.port, request(BODY)[:-1])
    post(rest.port, "/v1/rerank", BODY)
    rest.one()
    connection.close()
    wait_for(lambda: bool(rest.records))
    record = rest.one()
    assert record.left
    assert (record.code, record.status, record.documents) == ("CANCELLED", 499, None)


def test_calls_that_are_cut_off_at_the_end_of_the_grace_are_recorded() -> None:
    runner = HeldRunner()
    records = list[CallRecord]()
    with serving(runner=runner) as server:
        with rest_server(server.port, grace=1, sinks=(records.append,)) as port:
            asking = threading.Thread(target=post, args=(port, "/v1/rerank", BODY))
            asking.start()
            runner.await_batch()
        asking.join(WAIT)
    (record,) = records
    assert outcome(record) == ("rerank", "UNAVAILABLE", Reason.SHUTTING_DOWN, 503)
    assert not record.left


def test_bytes_that_are_no_request_are_recorded(rest: Told) -> None:
    with connect(rest.port, f"{CANARY}\r\n\r\n".encode()) as garbage:
        assert garbage.recv(65_536).startswith(b"HTTP/1.1 400 ")
    record = rest.one()
    assert outcome(record) == ("other", "INVALID_ARGUMENT", None, 400)
    assert CANARY not in repr(record)


def test_a_body_that_comes_too_slowly_is_recorded(
    scripted: RerankServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = LoopClock(monkeypatch)
    with told(scripted.port) as rest, connect(rest.port, request(BODY)[:-1]) as slow:
        clock.pass_by(NO_PROGRESS_SECONDS + 0.5, rest.port)
        assert slow.recv(65_536).startswith(b"HTTP/1.1 408 ")
        record = rest.one()
    assert outcome(record) == ("rerank", "DEADLINE_EXCEEDED", None, 408)
    assert not record.left


# The model of a call that failed


def test_a_failed_call_names_a_model_only_where_a_call_of_that_name_has_succeeded() -> None:
    def answer(asked: pb.RerankRequest, context: grpc.ServicerContext) -> pb.RerankResponse:
        if asked.query == "fail":
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        return scored(asked)

    server = ScriptedServer(otherwise=answer)
    server.start()
    failing = BODY | {"query": "fail"}
    try:
        with told(server.port) as rest:

            def model_of(body: dict[str, Any], path: str = "/v1/rerank") -> str:
                post(rest.port, path, body, content_type="application/json")
                return rest.one().model

            assert model_of(failing | {"model": "alias"}) == ""
            assert model_of(failing) == ""
            assert model_of(BODY | {"model": "alias"}) == "embedded"
            assert model_of(failing | {"model": "alias"}) == "embedded"
            assert model_of(failing | {"model": CANARY}) == ""
            assert model_of(failing) == ""
            assert model_of(BODY) == "embedded"
            assert model_of(failing) == "embedded"
            failing_message = {"query": "fail", "documents": [{"text": "d"}]}
            assert model_of(failing_message | {"model": "alias"}, f"{CONNECT}/Rerank") == "embedded"
            assert model_of(failing_message | {"model": CANARY}, f"{CONNECT}/Rerank") == ""
            # A body that cannot be read asks for nothing that is known.
            assert model_of({"query": "q", "model": "alias"}) == ""
    finally:
        server.stop()


def test_beside_its_models_a_failed_call_names_the_model_that_its_name_stands_for() -> None:
    names = {"": "embedded", "alias": "embedded"}
    recorder = Recorder(configured_name=lambda name: names.get(name, ""))

    def model_of(name: str | None, summary: RerankSummary | None = None) -> str:
        record = CallRecord("rerank", CallIds(), "rest", summary=summary)
        recorder.end(record, 200 if summary else 503, name)
        return record.model

    assert model_of("") == model_of("alias") == "embedded"
    assert model_of("elsewhere", RerankSummary("another")) == "another"
    assert model_of("elsewhere") == model_of(CANARY) == model_of(None) == ""


def test_names_that_are_remembered_are_bounded() -> None:
    recorder = Recorder()

    def model_of(name: str, summary: RerankSummary | None = None) -> str:
        record = CallRecord("rerank", CallIds(), "rest", summary=summary)
        recorder.end(record, 200 if summary else 503, name)
        return record.model

    summary = RerankSummary("embedded")
    model_of("first", summary)
    for number in range(MOST_NAMES - 1):
        model_of(f"name {number}", summary)
    assert model_of("first") == "embedded"
    model_of("first", summary)
    model_of("one more", summary)
    assert (model_of("first"), model_of("name 0"), model_of("name 1")) == ("embedded", "", "embedded")
    model_of("n" * 1_000_000, summary)
    assert model_of("n" * 1_000_000) == ""


# Whose call it is


@contextlib.contextmanager
def both() -> Iterator[tuple[Told, list[CallRecord]]]:
    """Runs REST and a gRPC server in this process; yields the records of each."""
    settings = replace(ServerSettings(), port=0, admin_port=0)
    records = list[CallRecord]()
    loader = ScriptedLoader(CountingRunner(), settings.engine)
    server = RerankServer(settings, loader=loader, sinks=(records.append,))
    server.start()
    try:
        assert server.wait_until_loaded(60)
        with told(server.port) as rest:
            yield rest, records
    finally:
        server.stop(5)


def test_the_grpc_server_of_this_process_knows_that_rest_tells_of_a_call() -> None:
    asks: list[Callable[[int], Reply]] = [
        lambda port: post(port, "/v1/rerank", BODY, traceparent=TRACE, tracestate="a=b"),
        lambda port: post(port, f"{CONNECT}/Rerank", b"", content_type=PROTO),
        lambda port: post(port, f"{CONNECT}/Health", {}, content_type="application/json"),
        lambda port: get(port, "/v1/models"),
        lambda port: get(port, "/health"),
        lambda port: get(port, "/"),
    ]
    with both() as (rest, records):
        for ask in asks:
            records.clear()
            ask(rest.port)
            wait_for(lambda: bool(records))
            assert all(record.ids.told_by_rest for record in records)
            assert not rest.one().ids.told_by_rest
        ids = records[0].ids
        assert (len(ids.request_id), ids.traceparent) == (32, "")
        asks[0](rest.port)
        wait_for(lambda: records[-1].method == "Rerank")
        assert records[-1].ids.request_id == rest.one().ids.request_id
        assert (records[-1].ids.traceparent, records[-1].ids.tracestate) == (TRACE, "a=b")


def test_a_callers_own_header_of_that_name_is_neither_believed_nor_passed_on() -> None:
    server = ScriptedServer()
    server.start()
    try:
        with told(server.port) as rest:
            for value in ("spoofed", PROCESS_ID):
                headers = {PROCESS_KEY: value}
                assert call(rest.port, "POST", "/v1/rerank", BODY, headers).status == 200
                assert not rest.one().ids.told_by_rest
                assert server.calls[-1].metadata[PROCESS_KEY] == PROCESS_ID
    finally:
        server.stop()


# The tracer's seam


@dataclass
class Span:
    headers: dict[str, str]
    ended: list[CallRecord] = field(default_factory=list)

    def end(self, record: CallRecord) -> None:
        self.ended.append(record)


@dataclass
class Tracer:
    spans: list[Span] = field(default_factory=list)
    begun: list[tuple[CallIds, str]] = field(default_factory=list)

    def begin(self, ids: CallIds, protocol: str) -> Span:
        self.begun.append((ids, protocol))
        self.spans.append(Span({"traceparent": f"00-{TRACE_ID}-{len(self.spans):016x}-01"}))
        return self.spans[-1]


@pytest.mark.parametrize("path", ["/v1/rerank", f"{CONNECT}/Rerank", f"{CONNECT}/Health"])
def test_a_tracers_span_takes_the_place_of_the_callers(path: str) -> None:
    server, tracer = ScriptedServer(), Tracer()
    server.start()
    parent = f"00-{'c' * 32}-b7ad6b7169203331-01"
    body = {"query": "q", "documents": [{"text": "d"}]}
    headers = {"content-type": "application/json", "traceparent": parent, "tracestate": "a=b"}
    try:
        with told(server.port, tracer=tracer) as rest:
            reply = call(rest.port, "POST", path, body, headers)
            record = rest.one()
    finally:
        server.stop()
    assert (reply.status, reply.headers["traceparent"]) == (200, tracer.spans[0].headers["traceparent"])
    ((ids, protocol),) = tracer.begun
    assert (ids.traceparent, ids.tracestate, protocol) == (parent, "a=b", "rest")
    (span,) = tracer.spans
    assert server.calls[0].metadata["traceparent"] == span.headers["traceparent"]
    assert "tracestate" not in server.calls[0].metadata
    assert span.ended == [record]
    assert record.ids.trace_id == TRACE_ID


def test_a_tracer_is_told_of_refusals_too_but_of_no_stranger_and_no_question(scripted: RerankServer) -> None:
    tracer = Tracer()
    with told(scripted.port, tokens=("secret",), tracer=tracer) as rest:
        assert post(rest.port, "/v1/rerank", BODY).status == 401
        assert post(rest.port, "/v1/rerank", b"{", x_api_key="secret").status == 400
        assert get(rest.port, "/health").status == 200
    assert [span.ended[0].code for span in tracer.spans] == ["INVALID_ARGUMENT"]


def test_a_tracer_or_sink_that_fails_costs_no_call(
    scripted: RerankServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        def begin(self, ids: CallIds, protocol: str) -> Span:
            raise ValueError(CANARY)

    def fail(_record: CallRecord) -> None:
        raise ValueError(CANARY)

    records = list[CallRecord]()
    with rest_server(scripted.port, sinks=(fail, records.append), tracer=Failing()) as port:
        assert post(port, "/v1/rerank", BODY, traceparent=TRACE).status == 200
    assert [record.ids.trace_id for record in records] == [TRACE_ID]
    assert "ValueError" in caplog.text
    assert CANARY not in logged(caplog)


def test_what_a_caller_sends_is_in_no_record(scripted: RerankServer) -> None:
    body = {"query": CANARY, "documents": [CANARY], "instruction": CANARY}
    with told(scripted.port) as rest:
        for one in (body, body | {"model": CANARY}, body | {"top_n": CANARY}, body | {"query": [CANARY]}):
            post(rest.port, f"/v1/rerank?{CANARY}", one, authorization=f"Bearer {CANARY}")
            post(rest.port, f"{CONNECT}/Rerank", json.dumps(one).encode(), content_type="application/json")
        get(rest.port, f"/{CANARY}?q={CANARY}")
        call(rest.port, CANARY, "/v1/rerank")
        assert len(rest.records) == 10
        assert CANARY not in repr(rest.records)
