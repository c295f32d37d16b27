"""Connect's unary protocol over plain HTTP: the contract's messages, the protocol's errors and headers."""

import base64
import http.client
import json
import logging
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from rerank_grpc.limits import LIMITS
from rerank_grpc.rest import app
from rerank_grpc.rest.connect.protocol import STATUSES
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.client.scripted_server import ScriptedServer, fail
from tests.rest.support import HOST, Reply, call, post, rest_server
from tests.support import WAIT, HeldRunner, logged, request_of, serving, stub_of, wait_for

ROOT = Path(__file__).resolve().parent.parent.parent
BUF = ROOT / "tools/buf/node_modules/.bin/buf"
SERVICE = "/rerank.v1.RerankService"
JSON, PROTO = "application/json", "application/proto"
GOOD = {"query": "q", "documents": [{"text": "d"}]}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def ask(port: int, body: Any, method: str = "Rerank", *, content_type: str = JSON, **headers: str) -> Reply:
    return post(port, f"{SERVICE}/{method}", body, content_type=content_type, **headers)


def ask_proto(port: int, message: Message, method: str = "Rerank", **headers: str) -> Reply:
    return ask(port, message.SerializeToString(), method, content_type=PROTO, **headers)


def told(reply: Reply, code: str, status: int | None = None) -> str:
    """Checks an error's form; returns its text."""
    body = reply.json
    assert (reply.status, body["code"]) == (status or STATUSES[code], code)
    assert body.keys() <= {"code", "message", "details"}
    assert body["message"]
    return str(body["message"])


def detail(reply: Reply, message: Message) -> Any:
    """Decodes the detail of a message's type, and checks that its `debug` says the same."""
    name = message.DESCRIPTOR.full_name
    (found,) = [each for each in reply.json["details"] if each["type"] == name]
    assert "=" not in found["value"]
    message.ParseFromString(base64.b64decode(found["value"] + "=" * (-len(found["value"]) % 4)))
    assert json_format.MessageToDict(message) == found["debug"]
    return message


def reason(reply: Reply) -> str:
    info = detail(reply, error_details_pb2.ErrorInfo())
    assert info.domain == "rerank.v1"
    return str(info.reason)


def violation(reply: Reply) -> str:
    (found,) = detail(reply, error_details_pb2.BadRequest()).field_violations
    return str(found.field)


def facts(line: logging.LogRecord) -> str:
    """Tells all that a line has, in its text or beside it."""
    return f"{line.getMessage()} {vars(line)}"


@contextmanager
def refusing(step: Any) -> Iterator[int]:
    """Runs REST before a server that answers its next call by a step."""
    server = ScriptedServer()
    server.script.append(step)
    server.start()
    try:
        with rest_server(server.port) as port:
            yield port
    finally:
        server.stop()


def test_scores_in_json_and_protobuf_are_grpcs_to_the_bit(embedded: RerankServer) -> None:
    texts = ["a cat sat", "passwords are reset in the settings", "", "密码", "x" * 500]
    message = request_of("how do I reset a password", *texts, return_documents=True)
    with rest_server(embedded.port) as port, stub_of(embedded.port) as stub:
        wanted = list(stub.Rerank(message).results)
        proto = pb.RerankResponse.FromString(ask_proto(port, message).raw)
        body = json_format.MessageToDict(message)
        text = ask(port, body)
    assert list(proto.results) == wanted
    assert list(json_format.ParseDict(text.json, pb.RerankResponse()).results) == wanted
    # A reader that knows floats of 64 bits alone gets the same one of 32.
    scores = [result["relevanceScore"] for result in text.json["results"]]
    narrow = [struct.unpack("f", struct.pack("f", score))[0] for score in scores]
    assert narrow == [result.relevance_score for result in wanted]


def test_json_has_what_is_zero_too(port: int) -> None:
    reply = ask(port, GOOD)
    assert reply.status == 200
    (result,) = reply.json["results"]
    assert (result["index"], result["id"], result["truncated"]) == (0, "", False)
    assert reply.json["queryTruncated"] is False
    assert "document" not in result


def test_every_field_reaches_grpc_by_either_name_and_nothing_is_added() -> None:
    server = ScriptedServer()
    server.start()
    fields = {
        "model": "m",
        "query": "q",
        "documents": [{"text": "d", "id": "1"}, {"text": "e"}],
        "topN": 1,
        "returnDocuments": True,
        "minRelevanceScore": 0.25,
        "instruction": "i",
        "maxTokensPerDocument": "7",
        "truncation": "TRUNCATION_NONE",
        "maxChunksPerDocument": 3,
        "priority": "PRIORITY_BATCH",
    }
    wanted = json_format.ParseDict(fields, pb.RerankRequest())
    unknown = b"\xf8\x07\x01"  # a field of a newer contract
    try:
        with rest_server(server.port) as port:
            assert ask(port, fields).status == 200
            snake = json_format.MessageToDict(wanted, preserving_proto_field_name=True)
            assert ask(port, snake | {"newer": [1], "instruction": "i", "model": "m"}).status == 200
            raw = wanted.SerializeToString() + unknown
            assert ask(port, raw, content_type=PROTO).status == 200
        first, second, third = (call.request for call in server.calls)
        assert first == second == wanted
        assert third.SerializeToString().endswith(unknown)
        assert not first.ignore_unsupported_options
    finally:
        server.stop()


def test_token_ids_and_deadline_go_along() -> None:
    server = ScriptedServer()
    server.start()
    headers = {"authorization": "Bearer t0ken", "x_request_id": "id-1", "traceparent": TRACE}
    try:
        with rest_server(server.port) as port:
            for method, body in (("Rerank", GOOD), ("ListModels", {}), ("Health", {})):
                reply = ask(port, body, method, connect_timeout_ms="20500", **headers)
                assert (reply.status, reply.headers["x-request-id"]) == (200, "id-1")
                seen = server.calls[-1]
                assert seen.method == method
                assert seen.metadata["authorization"] == "Bearer t0ken"
                assert (seen.metadata["x-request-id"], seen.metadata["traceparent"]) == ("id-1", TRACE)
                assert 15 < seen.time_remaining < 21
            ask(port, GOOD)
            assert 55 < server.calls[-1].time_remaining < 61
            ask(port, GOOD, x_request_timeout="20.5")
            assert 15 < server.calls[-1].time_remaining < 21
            ask(port, GOOD, connect_timeout_ms="9999999999")
            assert 115 < server.calls[-1].time_remaining < 121
    finally:
        server.stop()


@pytest.mark.parametrize("body", [b"", {}, {"model": "rerank-2"}])
def test_health_and_models_are_told(port: int, body: Any) -> None:
    health = ask(port, body, "Health")
    assert (health.json["model"], health.json["state"]) == ("embedded", "MODEL_STATE_READY")
    models = ask(port, body, "ListModels").json["models"]
    assert (models[0]["name"], models[0]["isDefault"]) == ("embedded", True)
    listed = ask_proto(port, pb.ListModelsRequest(), "ListModels")
    assert listed.headers["content-type"] == PROTO
    assert pb.ListModelsResponse.FromString(listed.raw).models[0].name == "embedded"


@pytest.mark.parametrize("version", ["1", None])
@pytest.mark.parametrize("content_type", [JSON, "Application/JSON; charset=utf-8"])
def test_the_header_of_the_version_may_be_left_out(port: int, version: str | None, content_type: str) -> None:
    headers = {"connect_protocol_version": version} if version else {}
    assert ask(port, GOOD, content_type=content_type, **headers).status == 200


@pytest.mark.parametrize("version", ["2", "", "v1"])
def test_another_version_is_refused(port: int, version: str) -> None:
    reply = ask(port, GOOD, connect_protocol_version=version)
    assert "Connect-Protocol-Version" in told(reply, "invalid_argument")


@pytest.mark.parametrize("text", ["soon", "-1", "1.5", "+1", "12345678901", "", "١"])
def test_a_time_of_another_form_is_refused(port: int, text: str) -> None:
    reply = call(
        port,
        "POST",
        f"{SERVICE}/Rerank",
        GOOD,
        {"content-type": JSON, "connect-timeout-ms": text.encode("utf-8").decode("latin-1")},
    )
    assert "Connect-Timeout-Ms" in told(reply, "invalid_argument")


@pytest.mark.parametrize("method", ["Rerank", "ListModels", "Health"])
def test_no_time_left_is_deadline_exceeded(port: int, method: str) -> None:
    told(ask(port, GOOD, method, connect_timeout_ms="0"), "deadline_exceeded")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/grpc"]
)
def test_another_content_type_is_415(port: int, content_type: str) -> None:
    reply = ask(port, GOOD, content_type=content_type)
    assert "application/json or application/proto" in told(reply, "unknown", 415)
    assert reply.headers["accept-post"] == "application/json, application/proto"
    told(call(port, "POST", f"{SERVICE}/Rerank", GOOD), "unknown", 415)


def test_a_compressed_body_is_unimplemented(port: int) -> None:
    assert "identity" in told(ask(port, b"\x1f\x8b", content_encoding="gzip"), "unimplemented")
    assert ask(port, GOOD, content_encoding="identity").status == 200


@pytest.mark.parametrize("path", [f"{SERVICE}/Nothing", "/rerank.v1.ModelAdminService/LoadModel"])
def test_other_methods_are_unimplemented(port: int, path: str) -> None:
    reply = post(port, path, {}, content_type=JSON)
    assert "over gRPC" in told(reply, "unimplemented")
    stream = post(port, path, b"\0\0\0\0\0", content_type="application/connect+json")
    assert (stream.status, stream.headers["content-type"]) == (200, "application/connect+json")
    flags, length = struct.unpack(">BI", stream.raw[:5])
    assert (flags, length) == (2, len(stream.raw) - 5)
    assert orjson.loads(stream.raw[5:])["error"] == reply.json


def test_a_get_is_not_offered(port: int) -> None:
    reply = call(port, "GET", f"{SERVICE}/Rerank?encoding=json&message=%7B%7D")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")


CANARY = "CANARY"
WRONG: dict[str, tuple[Any, str]] = {
    "query a number": ({"query": 5}, "query"),
    "query a list": ({"query": [CANARY]}, "query"),
    "no documents": ({"query": "q"}, "documents"),
    "documents a text": (GOOD | {"documents": CANARY}, "documents"),
    "a document that is a text": (GOOD | {"documents": [{"text": "d"}, CANARY]}, "documents[1]"),
    "a document that is empty": (GOOD | {"documents": [{"text": "d"}, ""]}, "documents[1]"),
    "a document that is a number": (GOOD | {"documents": [1]}, "documents[0]"),
    "a document that is null": (GOOD | {"documents": [None]}, "documents[0]"),
    "a document's text a list": (GOOD | {"documents": [{"text": [CANARY]}]}, "documents[0].text"),
    "a document's id a number": (GOOD | {"documents": [{"text": "d", "id": 3}]}, "documents[0].id"),
    "topN negative": (GOOD | {"topN": -1}, "topN"),
    "top_n a fraction": (GOOD | {"top_n": 1.5}, "top_n"),
    "topN huge": (GOOD | {"topN": 10**30}, "topN"),
    "topN a word": (GOOD | {"topN": CANARY}, "topN"),
    "topN true": (GOOD | {"topN": True}, "topN"),
    "returnDocuments a text": (GOOD | {"returnDocuments": CANARY}, "returnDocuments"),
    "a score beyond float32": (GOOD | {"minRelevanceScore": 1e300}, "minRelevanceScore"),
    "a score that is none": (GOOD | {"minRelevanceScore": "NaN"}, "min_relevance_score"),
    "a score by both names": (GOOD | {"min_relevance_score": 0, "minRelevanceScore": 1}, "minRelevanceScore"),
    "topN by both names": (GOOD | {"topN": 1, "top_n": 1}, "topN"),
    "an unknown truncation": (GOOD | {"truncation": CANARY}, "truncation"),
    "an unknown number of one": (GOOD | {"truncation": 9}, "truncation"),
    "a model that is an object": (GOOD | {"model": {CANARY: 1}}, "model"),
    "too many documents": (GOOD | {"documents": [{}] * 1_001}, "documents"),
    "a document too long": (GOOD | {"documents": [{"text": "d" * 100_001}]}, "documents[0].text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_named_and_not_quoted(port: int, case: str) -> None:
    body, field = WRONG[case]
    reply = ask(port, body)
    assert told(reply, "invalid_argument").startswith(f"{field}: ")
    assert (reason(reply), violation(reply)) == ("ERROR_REASON_INVALID_REQUEST", field)
    assert CANARY.encode() not in reply.raw


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"null", b'"CANARY"', b'{"query": NaN}', b"\xff", b'{"query": "caf\xe9"}', b"[" * 2_000],
)
def test_what_is_no_json_is_invalid_and_not_quoted(port: int, body: bytes) -> None:
    reply = ask(port, body)
    assert "the body" in told(reply, "invalid_argument")
    assert reason(reply) == "ERROR_REASON_INVALID_REQUEST"
    assert b"CANARY" not in reply.raw


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\xff", b"\x12\x02\xc3\x28", b'{"query": "q"}'])
def test_what_is_no_message_is_invalid(port: int, body: bytes) -> None:
    reply = ask(port, body, content_type=PROTO)
    assert "rerank.v1.RerankRequest" in told(reply, "invalid_argument")
    assert reason(reply) == "ERROR_REASON_INVALID_REQUEST"


def test_millions_of_documents_are_refused_before_they_are_made(port: int) -> None:
    empty = b"\x1a\x00" * (LIMITS.message_bytes // 2)
    assert "documents" in told(ask(port, empty, content_type=PROTO), "invalid_argument")
    for count, most, code in (
        (600_000, "500,000", "resource_exhausted"),
        (400_000, "1,000", "invalid_argument"),
    ):
        listed = b'{"query":"q","documents":[' + b",".join([b"{}"] * count) + b"]}"
        assert most in told(ask(port, listed), code)


def test_nulls_and_unknown_fields_count_as_absent(port: int) -> None:
    body = GOOD | {
        "model": None,
        "topN": None,
        "[ext]": 1,
        "top_k": [],
        "documents": [{"text": "d", "id": None}],
    }
    assert ask(port, body).status == 200


def test_half_an_emoji_is_a_replacement_character(port: int) -> None:
    body = b'{"query": "q", "returnDocuments": true, "documents": [{"text": "two \\ud83d"}]}'
    assert ask(port, body).json["results"][0]["document"]["text"] == "two \ufffd"


def test_a_wrong_token_is_unauthenticated_before_the_body(scripted: RerankServer) -> None:
    with rest_server(scripted.port, tokens=("t0ken",)) as port:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            reply = ask(port, b"nonsense", **headers)
            told(reply, "unauthenticated")
            assert reason(reply) == "ERROR_REASON_UNAUTHENTICATED"
            assert reply.headers["www-authenticate"] == "Bearer"
        assert ask(port, GOOD, authorization="Bearer t0ken").status == 200


def test_an_unknown_model_is_not_found(port: int) -> None:
    for reply in (
        ask(port, GOOD | {"model": "none-such"}),
        ask(port, {"model": "none-such"}, "Health"),
        ask_proto(port, request_of("q", "d", model="none-such")),
    ):
        assert "none-such" in told(reply, "not_found")
        assert reason(reply) == "ERROR_REASON_UNKNOWN_MODEL"
        assert detail(reply, error_details_pb2.ResourceInfo()).resource_name == "none-such"


def test_an_option_that_the_model_does_not_take_is_refused_as_over_grpc(embedded: RerankServer) -> None:
    asked = GOOD | {"instruction": "i"}
    with rest_server(embedded.port) as port:
        reply = ask(port, asked)
        told(reply, "invalid_argument")
        assert (reason(reply), violation(reply)) == ("ERROR_REASON_UNSUPPORTED_OPTION", "instruction")
        assert ask(port, asked | {"ignoreUnsupportedOptions": True}).status == 200


REFUSALS = [
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", 2.5, "resource_exhausted", "3"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEADLINE_UNREACHABLE", 1.0, "resource_exhausted", "1"),
    (grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING", 1.5, "unavailable", "2"),
    (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_FAILED", None, "failed_precondition", "1"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "PAIR_TOO_LARGE", None, "resource_exhausted", None),
    (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", None, "permission_denied", None),
    (grpc.StatusCode.INTERNAL, "INTERNAL", None, "internal", None),
    (grpc.StatusCode.CANCELLED, "CANCELLED", None, "canceled", None),
]


@pytest.mark.parametrize(("status", "why", "delay", "code", "header"), REFUSALS)
def test_the_servers_refusals_keep_code_reason_and_delay(
    status: grpc.StatusCode, why: str, delay: float | None, code: str, header: str | None
) -> None:
    step = fail(status, reason=f"ERROR_REASON_{why}", retry_after=delay, pushback_ms=-1)
    with refusing(step) as port:
        reply = ask(port, GOOD)
    assert told(reply, code).startswith("refused")
    assert reason(reply) == f"ERROR_REASON_{why}"
    assert reply.headers.get("retry-after") == header
    if delay is not None:
        wait = detail(reply, error_details_pb2.RetryInfo()).retry_delay
        assert wait.seconds + wait.nanos / 1e9 == delay


def test_a_server_that_is_away_is_unavailable(refusing: int) -> None:
    with rest_server(refusing) as port:
        for method in ("Rerank", "Health"):
            reply = ask(port, GOOD, method)
            assert "127.0.0.1" not in told(reply, "unavailable")
            assert reply.headers["retry-after"] == "1"


@pytest.mark.parametrize("status", [grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED])
def test_a_status_without_a_reason_is_internal(status: grpc.StatusCode) -> None:
    with refusing(fail(status, CANARY)) as port:
        assert told(ask(port, GOOD), "internal") == "internal error"


def test_too_many_bytes_are_resource_exhausted(port: int) -> None:
    for reply in (
        ask(port, b" " * (LIMITS.body_bytes + 1)),
        ask(port, b" " * (LIMITS.message_bytes + 1), content_type=PROTO),
        ask(port, GOOD | {"documents": [{"text": "d" * 99_000}] * 95}),
    ):
        assert "8,388,608 bytes (8 MiB)" in told(reply, "resource_exhausted")
        assert "retry-after" not in reply.headers


def test_the_bytes_of_all_bodies_are_bounded_together_with_those_of_the_dialects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "BODIES_BYTES", 1_000)
    runner = HeldRunner()
    long = GOOD | {"documents": [{"text": "word " * 150}]}
    with serving(runner=runner) as server, rest_server(server.port) as port:
        first = threading.Thread(target=ask, args=(port, long))
        first.start()
        runner.await_batch()
        for reply in (ask(port, long), post(port, "/v1/rerank", long)):
            assert (reply.status, reply.headers["retry-after"]) == (429, "1")
        runner.let_all()
        first.join(WAIT)
        assert ask(port, long).status == 200


def test_a_caller_that_leaves_cancels_its_call() -> None:
    cancelled = threading.Event()

    def wait(_request: object, context: grpc.ServicerContext) -> pb.RerankResponse:
        context.add_callback(cancelled.set)
        assert cancelled.wait(WAIT)
        return pb.RerankResponse()

    server = ScriptedServer(otherwise=wait)
    server.start()
    try:
        with rest_server(server.port) as port:
            connection = http.client.HTTPConnection(HOST, port, timeout=WAIT)
            connection.request("POST", f"{SERVICE}/Rerank", json.dumps(GOOD), {"content-type": JSON})
            wait_for(lambda: bool(server.calls))
            connection.close()
            assert cancelled.wait(WAIT)
    finally:
        cancelled.set()
        server.stop()


def test_another_server_answers_where_one_is_away(scripted: RerankServer, refusing: int) -> None:
    with rest_server(refusing, scripted.port) as port:
        assert [ask(port, GOOD).status for _ in range(4)] == [200] * 4
        assert [ask(port, {}, "Health").status for _ in range(4)] == [200] * 4


def test_a_call_is_one_line_in_the_log(port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    ask(port, GOOD | {"query": CANARY}, x_request_id="id-7")
    ask(port, {"query": [CANARY]}, x_request_id="id-8")
    lines = [record for record in caplog.records if record.name == "rerank_grpc.calls"]
    first, second = (told for told in map(facts, lines) if "connect" in told)
    assert all(fact in first for fact in ("Rerank", "OK", "200", "id-7"))
    assert all(fact in second for fact in ("Rerank", "INVALID_ARGUMENT", "400", "id-8"))
    assert "kind" not in first
    assert "kind" in second  # by which the log bounds what callers cause at will
    assert CANARY not in logged(caplog)


@pytest.mark.parametrize("data", [{"query": "q", "documents": [{"text": "a"}, {"text": "b", "id": "x"}]}, {}])
def test_buf_curl_calls_the_contract(port: int, data: Any) -> None:
    if not BUF.exists():
        if os.environ.get("CI"):
            pytest.fail("buf is missing: `make lint` installs it")
        pytest.skip("buf is missing: `make lint` installs it")
    url = f"http://{HOST}:{port}{SERVICE}/Rerank"
    command = [
        str(BUF),
        "curl",
        "--protocol",
        "connect",
        "--schema",
        "proto",
        "--data",
        json.dumps(data),
        url,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if data:
        assert {result.get("id", "") for result in json.loads(done.stdout)["results"]} == {"", "x"}
    else:
        error = json.loads(done.stderr)
        assert (error["code"], error["details"][0]["type"]) == ("invalid_argument", "google.rpc.ErrorInfo")
