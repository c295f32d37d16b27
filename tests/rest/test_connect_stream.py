"""Connect's protocol of a stream: StreamRerank over plain HTTP, message by message."""

import http.client
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from rerank_grpc.config.settings import EngineSettings, ServerSettings
from rerank_grpc.errors import Reason
from rerank_grpc.http.protocol import WRITE_SECONDS
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest import app
from rerank_grpc.rest.connect.stream import CODECS, STREAM_PATH
from rerank_grpc.server.server import RerankServer
from rerank_grpc.telemetry.records import CallRecord
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.client.scripted_server import ScriptedServer, fail, results
from tests.rest.support import ENVELOPE, HOST, LoopClock, Reply, enveloped, opened, post, rest_server
from tests.rest.test_connect import BUF, ROOT
from tests.support import WAIT, HeldRunner, request_of, serving, stub_of, wait_for

JSON, PROTO = CODECS
GOOD = {"query": "q", "documents": [{"text": "d"}]}
LONG = {"query": "q", "documents": [{"text": f"{number} " * 40} for number in range(4)]}
# Batches that hold one document of LONG.
SMALL = replace(ServerSettings(), engine=replace(EngineSettings(), max_batch_tokens=64))


def ask(port: int, body: Any, *, content_type: str = JSON, **headers: str) -> Reply:
    """Sends one message in an envelope; bytes go as they are."""
    sent = body if isinstance(body, bytes) else enveloped(json.dumps(body).encode())
    return post(port, STREAM_PATH, sent, content_type=content_type, **headers)


def error_of(reply: Reply, code: str) -> str:
    """Checks the form of a stream that failed before its first message; returns the text."""
    assert (reply.status, reply.headers["content-type"]) == (200, JSON)
    messages, end = opened(reply.raw)
    assert messages == []
    assert end["error"].keys() <= {"code", "message", "details"}
    assert end["error"]["code"] == code, end
    return str(end["error"]["message"])


@contextmanager
def begun(port: int, body: Any, **headers: str) -> Iterator[http.client.HTTPResponse]:
    """Sends a request, and reads the head of the answer alone."""
    with closing(http.client.HTTPConnection(HOST, port, timeout=WAIT)) as connection:
        connection.request(
            "POST", STREAM_PATH, enveloped(json.dumps(body).encode()), {"content-type": JSON, **headers}
        )
        yield connection.getresponse()


def read_envelope(response: http.client.HTTPResponse) -> tuple[int, Any]:
    """Reads the next envelope: its flags, and its JSON."""
    flags, length = ENVELOPE.unpack(response.read(ENVELOPE.size))
    return flags, json.loads(response.read(length))


@contextmanager
def before(*steps: Any, otherwise: Any = None, **settings: Any) -> Iterator[tuple[ScriptedServer, int]]:
    """Runs REST before a server that streams by script."""
    server = ScriptedServer(otherwise=otherwise)
    server.script.extend(steps)
    server.start()
    try:
        with rest_server(server.port, **settings) as port:
            yield server, port
    finally:
        server.stop()


@pytest.mark.parametrize("content_type", [JSON, PROTO])
def test_results_are_those_of_one_reply_to_the_bit(embedded: RerankServer, content_type: str) -> None:
    texts = ["a cat sat", "passwords are reset in the settings", "", "密码", "x" * 500]
    message = request_of("how do I reset a password", *texts, return_documents=True)
    with rest_server(embedded.port) as port, stub_of(embedded.port) as stub:
        wanted = {result.index: result for result in stub.Rerank(message).results}
        if content_type == PROTO:
            reply = ask(port, enveloped(message.SerializeToString()), content_type=PROTO)
        else:
            reply = ask(port, json_format.MessageToDict(message))
    assert (reply.status, reply.headers["content-type"]) == (200, content_type)
    messages, end = opened(reply.raw)
    assert end == {}
    if content_type == PROTO:
        parts = [pb.StreamRerankResponse.FromString(each) for each in messages]
    else:
        parts = [json_format.Parse(each, pb.StreamRerankResponse()) for each in messages]
    *before, last = parts
    assert {result.index: result for part in before for result in part.results} == wanted
    assert last.summary.model == "embedded"
    assert last.summary.usage.input_tokens > 0
    assert not any(part.HasField("summary") for part in before)


def test_the_first_message_is_there_before_the_last_document_is_scored() -> None:
    runner = HeldRunner()
    with serving(SMALL, runner=runner) as server, rest_server(server.port) as port:
        runner.let(1)
        with begun(port, LONG) as response:
            flags, first = read_envelope(response)
            assert (flags, len(first["results"])) == (0, 1)
            assert len(runner.batches) == 1
            assert response.headers["x-accel-buffering"] == "no"
            runner.let_all()
            rest = []
            while flags != 2:
                flags, message = read_envelope(response)
                rest.append(message)
            assert response.read() == b""
        *others, summary, end = rest
        assert sum(len(each["results"]) for each in others) == 3
        assert (summary["summary"]["model"], end) == ("embedded", {})


@pytest.mark.parametrize("content_type", [JSON, "Application/Connect+JSON; charset=utf-8"])
def test_the_media_type_is_read_as_http_has_it(port: int, content_type: str) -> None:
    messages, end = opened(ask(port, GOOD, content_type=content_type).raw)
    assert (len(messages), end) == (2, {})


def test_a_message_without_envelopes_in_mind_is_415(port: int) -> None:
    reply = ask(port, json.dumps(GOOD).encode(), content_type="application/json")
    assert (reply.status, reply.headers["accept-post"]) == (415, f"{JSON}, {PROTO}")
    assert JSON in reply.json["message"]


def test_token_ids_and_deadline_go_along() -> None:
    with before() as (server, port):
        headers = {"authorization": "Bearer t0ken", "x_request_id": "id-1"}
        reply = ask(port, GOOD, connect_timeout_ms="20500", connect_protocol_version="1", **headers)
        assert reply.headers["x-request-id"] == "id-1"
        (seen,) = server.calls
        assert (seen.metadata["authorization"], seen.metadata["x-request-id"]) == ("Bearer t0ken", "id-1")
        assert 15 < seen.time_remaining < 21


BROKEN: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "unimplemented", "no message"),
    "within the prefix": (b"\0\0\0", "invalid_argument", "5 bytes"),
    "4 GiB are told": (b"\0\xff\xff\xff\xff{}", "invalid_argument", "4,294,967,295 bytes, of which 2 came"),
    "a byte is missing": (enveloped(b"{}")[:-1], "invalid_argument", "2 bytes, of which 1 came"),
    "two messages": (enveloped(b"{}") * 2, "unimplemented", "more than one message"),
    "a byte too many": (enveloped(b"{}") + b"\0", "unimplemented", "more than one message"),
    "compressed": (enveloped(b"\x1f\x8b", 1), "invalid_argument", "compressed"),
    "an end": (enveloped(b"{}", 2), "invalid_argument", "flags are 2"),
    "unknown flags": (enveloped(b"{}", 128), "invalid_argument", "flags are 128"),
    "no envelope": (b'{"query": "q", "documents": [{"text": "d"}]}', "invalid_argument", "compressed"),
    "an empty message": (enveloped(b""), "invalid_argument", "documents: "),
    "no JSON": (enveloped(b"{"), "invalid_argument", "not JSON"),
    "a wrong field": (enveloped(b'{"query": 5}'), "invalid_argument", "query: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_body_is_refused_in_the_envelope_that_ends_the_stream(port: int, case: str) -> None:
    body, code, text = BROKEN[case]
    assert text in error_of(ask(port, body), code)
    assert opened(ask(port, GOOD).raw)[1] == {}


def test_too_many_bytes_are_resource_exhausted(port: int) -> None:
    told = error_of(ask(port, enveloped(b" " * (LIMITS.body_bytes + 1))), "resource_exhausted")
    assert "8,388,608 bytes (8 MiB)" in told


@pytest.mark.parametrize("header", ["connect_content_encoding", "content_encoding"])
def test_a_compressed_message_is_unimplemented(port: int, header: str) -> None:
    refused = ask(port, enveloped(b"\x1f\x8b", 1), **{header: "gzip"})
    assert "these are: identity" in error_of(refused, "unimplemented")
    assert opened(ask(port, GOOD, **{header: "identity"}).raw)[1] == {}
    # What a caller could read does not matter: nothing is compressed.
    assert opened(ask(port, GOOD, connect_accept_encoding="gzip").raw)[1] == {}


def test_the_callers_headers_are_checked(port: int) -> None:
    assert "must be 1" in error_of(ask(port, GOOD, connect_protocol_version="2"), "invalid_argument")
    assert "Connect-Timeout-Ms" in error_of(ask(port, GOOD, connect_timeout_ms="soon"), "invalid_argument")
    error_of(ask(port, GOOD, connect_timeout_ms="0"), "deadline_exceeded")


def test_without_a_token_nothing_is_read(scripted: RerankServer) -> None:
    with rest_server(scripted.port, tokens=("t0ken",)) as port:
        reply = ask(port, b"nonsense")
        error_of(reply, "unauthenticated")
        assert opened(reply.raw)[1]["metadata"] == {"www-authenticate": ["Bearer"]}
        assert opened(ask(port, GOOD, authorization="Bearer t0ken").raw)[1] == {}


def test_an_unknown_model_is_not_found(port: int) -> None:
    assert "none-such" in error_of(ask(port, GOOD | {"model": "none-such"}), "not_found")


def test_a_servers_refusal_keeps_its_delay() -> None:
    busy = fail(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="ERROR_REASON_QUEUE_FULL", retry_after=2.5)
    with before(busy) as (_, port):
        reply = ask(port, GOOD)
    error_of(reply, "resource_exhausted")
    assert opened(reply.raw)[1]["metadata"] == {"retry-after": ["3"]}


def test_an_error_after_some_messages_ends_the_stream() -> None:
    def break_off(request: Any, context: grpc.ServicerContext) -> Iterator[pb.StreamRerankResponse]:
        yield pb.StreamRerankResponse(results=results(request))
        fail(grpc.StatusCode.INTERNAL, reason="ERROR_REASON_INTERNAL")(request, context)

    records = list[CallRecord]()
    with before(break_off, sinks=(records.append,)) as (server, port):
        messages, end = opened(ask(port, GOOD).raw)
        assert len(server.calls) == 1  # what has begun is not begun again elsewhere
    assert len(json.loads(messages[0])["results"]) == 1
    assert (len(messages), end["error"]["code"]) == (1, "internal")
    (record,) = records
    assert (record.method, record.code, record.status) == ("StreamRerank", "INTERNAL", 200)
    assert (record.documents, record.summary) == (1, None)


def test_a_server_that_dies_amid_a_stream_is_unavailable() -> None:
    dead = threading.Event()

    def hold(request: Any, _context: object) -> Iterator[pb.StreamRerankResponse]:
        yield pb.StreamRerankResponse(results=results(request))
        dead.wait(WAIT)

    with before(hold) as (server, port), begun(port, GOOD) as response:
        read_envelope(response)
        server.stop()
        dead.set()
        messages, end = opened(response.read())
    assert (messages, end["error"]["code"]) == ([], "unavailable")
    assert end["metadata"] == {"retry-after": ["1"]}


def test_a_stream_without_its_summary_is_an_error() -> None:
    def cut_short(request: Any, _context: object) -> Iterator[pb.StreamRerankResponse]:
        yield pb.StreamRerankResponse(results=results(request))

    with before(cut_short) as (_, port):
        messages, end = opened(ask(port, GOOD).raw)
    assert (len(messages), end["error"]["code"]) == (1, "internal")


def test_the_deadline_ends_a_stream_that_has_begun() -> None:
    runner = HeldRunner()
    with serving(SMALL, runner=runner) as server, rest_server(server.port) as port:
        runner.let(1)
        messages, end = opened(ask(port, LONG, connect_timeout_ms="6000").raw)
        assert (len(messages), end["error"]["code"]) == (1, "deadline_exceeded")
        assert "by Connect-Timeout-Ms" in end["error"]["message"]


def test_another_server_answers_where_one_is_away(scripted: RerankServer, refusing: int) -> None:
    with rest_server(refusing, scripted.port) as port:
        assert [opened(ask(port, GOOD).raw)[1] for _ in range(4)] == [{}] * 4


def test_a_call_has_one_record(scripted: RerankServer) -> None:
    records = list[CallRecord]()
    with rest_server(scripted.port, sinks=(records.append,)) as port:
        ask(port, LONG)
        ask(port, {"query": "q"})
    good, bad = records
    assert (good.method, good.code, good.status, good.dialect) == ("StreamRerank", "OK", 200, "connect")
    assert good.summary is not None
    assert (good.documents, good.model, good.route) == (4, "embedded", f"POST {STREAM_PATH}")
    assert (bad.code, bad.reason, bad.status) == ("INVALID_ARGUMENT", Reason.INVALID_REQUEST, 200)


@pytest.mark.parametrize("begins", [True, False])
def test_a_caller_that_leaves_cancels_its_call(begins: bool) -> None:
    cancelled = threading.Event()
    records = list[CallRecord]()

    def wait(request: Any, context: grpc.ServicerContext) -> Iterator[pb.StreamRerankResponse]:
        context.add_callback(cancelled.set)
        if begins:
            yield pb.StreamRerankResponse(results=results(request))
        assert cancelled.wait(WAIT)

    with before(otherwise=wait, sinks=(records.append,)) as (server, port):
        body = enveloped(json.dumps(GOOD).encode())
        with closing(http.client.HTTPConnection(HOST, port, timeout=WAIT)) as connection:
            connection.request("POST", STREAM_PATH, body, {"content-type": JSON})
            wait_for(lambda: bool(server.calls))
            if begins:
                read_envelope(connection.getresponse())
        assert cancelled.wait(WAIT)
        wait_for(lambda: bool(records))
    assert (records[0].code, records[0].left) == ("CANCELLED", True)


def test_a_caller_that_does_not_read_holds_the_server_up_and_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, cancelled = LoopClock(monkeypatch), threading.Event()
    sent: list[int] = []
    large = pb.StreamRerankResponse(results=[pb.RerankResult(document=pb.Document(text="x" * (1 << 20)))])

    def flood(_request: Any, context: grpc.ServicerContext) -> Iterator[pb.StreamRerankResponse]:
        context.add_callback(cancelled.set)
        while not cancelled.is_set():
            yield large
            sent.append(1)

    with before(otherwise=flood) as (_, port), socket.socket() as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        unread.connect((HOST, port))
        body = enveloped(json.dumps(GOOD).encode())
        head = f"POST {STREAM_PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\n"
        unread.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: bool(sent))
        for _ in range(1_000):  # the time that a caller has begins when nothing more can be written
            clock.pass_by(WRITE_SECONDS, port)
            if cancelled.wait(0.02):
                break
        assert cancelled.is_set()
    assert len(sent) < 40  # MiB


def test_a_stream_that_is_cut_off_at_the_end_of_the_grace_says_so() -> None:
    runner = HeldRunner()
    records = list[CallRecord]()
    runner.let(1)
    with serving(SMALL, runner=runner) as server, ExitStack() as calls:
        with rest_server(server.port, grace=0.5, sinks=(records.append,)) as port:
            response = calls.enter_context(begun(port, LONG))
            read_envelope(response)
        messages, end = opened(response.read())
    assert (messages, end["error"]["code"]) == ([], "unavailable")
    assert records[0].reason is Reason.SHUTTING_DOWN


def test_a_bodys_bytes_count_until_its_stream_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODIES_BYTES", 600)
    runner = HeldRunner()
    with serving(SMALL, runner=runner) as server, rest_server(server.port) as port:
        runner.let(1)
        with begun(port, LONG) as response:
            read_envelope(response)
            reply = ask(port, LONG)
            error_of(reply, "resource_exhausted")
            assert opened(reply.raw)[1]["metadata"] == {"retry-after": ["1"]}
            runner.let_all()
            assert opened(response.read())[1] == {}
        wait_for(lambda: opened(ask(port, LONG).raw)[1] == {})


def test_many_streams_at_once_are_kept_apart(port: int) -> None:
    found: dict[int, list[Any]] = {}

    def call(number: int) -> None:
        texts = [{"text": f"{number} of {each}", "id": f"{number}-{each}"} for each in range(30)]
        messages, end = opened(ask(port, {"query": "q", "documents": texts}).raw)
        assert end == {}
        found[number] = [result["id"] for each in messages for result in json.loads(each)["results"]]

    threads = [threading.Thread(target=partial(call, number)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert {number: sorted(ids) for number, ids in found.items()} == {
        number: sorted(f"{number}-{each}" for each in range(30)) for number in range(20)
    }


@pytest.mark.parametrize("data", [GOOD, {}])
def test_buf_curl_calls_the_stream(port: int, data: Any) -> None:
    if not BUF.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("buf is missing: `make lint` installs it")
    command = [str(BUF), "curl", "--protocol", "connect", "--schema", "proto", "--data", json.dumps(data)]
    url = f"http://{HOST}:{port}{STREAM_PATH}"
    done = subprocess.run([*command, url], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if data:
        assert done.returncode == 0, done.stderr
        decoder, told = json.JSONDecoder(), done.stdout.strip()
        first, end = decoder.raw_decode(told)
        assert len(first["results"]) == 1
        assert decoder.raw_decode(told[end:].strip())[0]["summary"]["model"] == "embedded"
    else:
        error = json.loads(done.stderr)
        assert (error["code"], error["details"][0]["type"]) == ("invalid_argument", "google.rpc.ErrorInfo")
