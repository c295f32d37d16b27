"""Connect's protocol of a stream: StreamRerank over plain HTTP, message by message."""

import http.client
import json
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format

from rerank_grpc.config.settings import EngineSettings, ServerSettings
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.client.scripted_server import ScriptedServer
from tests.rest.support import HOST, Reply, post, rest_server
from tests.support import WAIT, HeldRunner, request_of, serving, stub_of

SERVICE = "/rerank.v1.RerankService"
PATH = f"{SERVICE}/StreamRerank"
JSON, PROTO = "application/connect+json", "application/connect+proto"
GOOD = {"query": "q", "documents": [{"text": "d"}]}
PREFIX = struct.Struct(">BI")


def enveloped(message: bytes, flags: int = 0) -> bytes:
    return PREFIX.pack(flags, len(message)) + message


def ask(port: int, body: Any, *, content_type: str = JSON, **headers: str) -> Reply:
    """Sends one message in an envelope; bytes go as they are."""
    sent = body if isinstance(body, bytes) else enveloped(json.dumps(body).encode())
    return post(port, PATH, sent, content_type=content_type, **headers)


def opened(raw: bytes) -> tuple[list[bytes], dict[str, Any]]:
    """Takes a whole stream apart: its messages, and what its end tells."""
    messages = []
    while raw:
        flags, length = PREFIX.unpack_from(raw)
        message, raw = raw[PREFIX.size : PREFIX.size + length], raw[PREFIX.size + length :]
        assert len(message) == length
        if flags == 2:
            assert not raw
            return messages, json.loads(message)
        assert flags == 0
        messages.append(message)
    raise AssertionError("the stream has no end")


def error_of(reply: Reply) -> Any:
    """Checks the form of a stream that failed before its first message; returns its error."""
    assert (reply.status, reply.headers["content-type"]) == (200, JSON)
    messages, end = opened(reply.raw)
    assert messages == []
    assert end["error"].keys() <= {"code", "message", "details"}
    assert end["error"]["message"]
    return end["error"]


@contextmanager
def begun(port: int, body: Any, **headers: str) -> Iterator[http.client.HTTPResponse]:
    """Sends a request, and reads the head of the answer alone."""
    with closing(http.client.HTTPConnection(HOST, port, timeout=WAIT)) as connection:
        connection.request(
            "POST", PATH, enveloped(json.dumps(body).encode()), {"content-type": JSON, **headers}
        )
        yield connection.getresponse()


def read_envelope(response: http.client.HTTPResponse) -> tuple[int, Any]:
    """Reads the next envelope: its flags, and its JSON."""
    flags, length = PREFIX.unpack(response.read(PREFIX.size))
    return flags, json.loads(response.read(length))


@contextmanager
def scripted(*steps: Any, otherwise: Any = None, **settings: Any) -> Iterator[tuple[ScriptedServer, int]]:
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
    settings = replace(ServerSettings(), engine=replace(EngineSettings(), max_batch_tokens=64))
    long = {"query": "q", "documents": [{"text": f"{number} " * 40} for number in range(4)]}
    with serving(settings, runner=runner) as server, rest_server(server.port) as port:
        runner.let(1)
        with begun(port, long) as response:
            flags, first = read_envelope(response)
            assert (flags, len(first["results"])) == (0, 1)
            assert len(runner.batches) == 1
            runner.let_all()
            rest = []
            while flags != 2:
                flags, message = read_envelope(response)
                rest.append(message)
            assert response.read() == b""
        *others, summary, end = rest
        assert sum(len(each["results"]) for each in others) == 3
        assert (summary["summary"]["model"], end) == ("embedded", {})
