"""What goes wrong: the table is complete, and whatever comes in, JSON of the right shape goes out."""

import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import orjson
import pytest

from rerank_grpc import client, errors
from rerank_grpc.client import RerankError
from rerank_grpc.limits import MIB
from rerank_grpc.rest.errors import STATUSES, problem_of
from rerank_grpc.server.server import RerankServer
from tests.client.scripted_server import ScriptedServer, fail
from tests.rest.support import Reply, call, get, post, rest_server
from tests.support import logged

GOOD = {"query": "q", "documents": ["d"]}


def every(kind: type[RerankError]) -> Iterator[type[RerankError]]:
    for child in kind.__subclasses__():
        yield child
        yield from every(child)


def check_shape(reply: Reply) -> None:
    """The common error body: every key that some client reads, and one text."""
    body = reply.json
    text = body["detail"]
    assert isinstance(text, str)
    assert text
    assert body["message"] == body["error"]["message"] == text
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["param"] is None
    assert b"Traceback" not in reply.raw


def test_the_table_of_errors_is_complete() -> None:
    ours = {kind for kind in every(RerankError) if kind.__module__.startswith("rerank_grpc.")}
    assert ours == STATUSES.keys()
    assert set(errors.BY_REASON.values()) <= STATUSES.keys()


def test_an_error_says_when_to_come_back() -> None:
    assert problem_of(client.QueueFull("full", retry_after=2.1)).headers == {"retry-after": "3"}
    assert problem_of(client.ServerUnavailable("10.0.0.1 refused")).headers == {"retry-after": "1"}
    late = problem_of(client.DeadlineUnreachable("busy", retry_after=0.1))
    assert (late.status, late.headers) == (504, {"retry-after": "1"})
    assert problem_of(client.DeadlineExceeded("late")).headers == {}


def test_texts_that_are_not_ours_stay_inside() -> None:
    for error in (client.ServerUnavailable("at 10.0.0.1"), ValueError("secret"), client.TransportError("x")):
        message = problem_of(error).message
        assert not any(secret in message for secret in ("10.0.0.1", "secret", "x: "))


WRONG: dict[str, Any] = {
    "no body": b"",
    "no JSON": b"query=q",
    "half a JSON": b'{"query": "q", "documents": ["d"',
    "not UTF-8": b'{"query": "\xff", "documents": ["d"]}',
    "NaN": b'{"query": "q", "documents": ["d"], "top_n": NaN}',
    "an infinite number": b'{"query": "q", "documents": ["d"], "top_n": 1e999}',
    "100,000 brackets": b'{"query": ' + b"[" * 100_000,
    "a list": [],
    "a text": "query",
    "null": None,
    "nothing in it": {},
    "no query": {"documents": ["d"]},
    "an empty query": {"query": "", "documents": ["d"]},
    "a query that is a number": {"query": 1, "documents": ["d"]},
    "a query that is a list": {"query": ["q"], "documents": ["d"]},
    "no documents": {"query": "q"},
    "documents null": {"query": "q", "documents": None},
    "documents empty": {"query": "q", "documents": []},
    "documents a text": {"query": "q", "documents": "d"},
    "documents an object": {"query": "q", "documents": {"text": "d"}},
    "a document that is a number": {"query": "q", "documents": ["d", 1]},
    "a document null": {"query": "q", "documents": ["d", None]},
    "a document without text": {"query": "q", "documents": [{}]},
    "a document of lists alone": {"query": "q", "documents": [{"vector": [1]}]},
    "too many documents": {"query": "q", "documents": ["d"] * 1001},
    "a document too long": {"query": "q", "documents": ["d" * 100_001]},
    "top_n negative": GOOD | {"top_n": -1},
    "top_n a text": GOOD | {"top_n": "two"},
    "top_n true": GOOD | {"top_n": True},
    "top_n a fraction": GOOD | {"top_n": 1.5},
    "return_documents a number": GOOD | {"return_documents": 1},
    "model a list": GOOD | {"model": ["m"]},
    "kwargs no JSON": GOOD | {"kwargs": "{"},
    "kwargs of lists without end": GOOD | {"kwargs": f'{{"x": [{"[]," * 1_000_000}[]]}}'},
    "texts and documents": GOOD | {"texts": ["e"]},
    "input a text": {"query": "q", "input": "d"},
    "parameters a list": {"input": {"query": "q", "documents": ["d"]}, "parameters": []},
    "an instruction too long": GOOD | {"instruction": "i" * 100_001},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_body_is_400_in_every_shape_at_once(port: int, case: str) -> None:
    body = WRONG[case]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = call(port, "POST", "/v1/rerank", data)
    assert reply.status == 400
    check_shape(reply)
    assert post(port, "/v1/rerank", GOOD).status == 200


def test_kwargs_are_bounded_before_they_are_parsed(port: int) -> None:
    reply = post(port, "/v1/rerank", GOOD | {"kwargs": "[" * 700_000})
    assert reply.json["detail"] == "kwargs: has 700,000 characters, at most 601,000 are allowed"


@pytest.mark.parametrize("body", [{"query": "q\0", "documents": ["\0"]}, GOOD | {"top_n": 10**30}])
def test_what_is_odd_but_right_is_answered(port: int, body: Any) -> None:
    assert post(port, "/v1/rerank", body).status == 200


# Texts as JSON writes them: brackets, quotes and backslashes in them, at their ends, and none at all.
TEXTS = ['""', '"a"', '"["', r'"\""', r'"\\"', r'"[\"["', r'"\\\""', r'"{\\\\[\n"']


@pytest.mark.parametrize("text", TEXTS)
def test_only_brackets_outside_of_texts_count(port: int, text: str) -> None:
    many = "[{" * 300_000
    mixed = f'{{"query": {text}, "documents": [{text}], "extra": [{text}, "{many}", {text}]}}'.encode()
    assert post(port, "/v1/rerank", mixed).status == (200 if len(orjson.loads(text)) else 400)
    lists = ",".join([f"[{text}]"] * 600_000)
    reply = post(port, "/v1/rerank", f'{{"query": {text}, "documents": [{lists}]}}'.encode())
    assert reply.status == 413
    check_shape(reply)


@pytest.mark.parametrize("unit", ['"[",', '"[",[', '"",', '["[', "[", "\\[", '"\\"[', '"'])
def test_the_hardest_bodies_are_counted_in_a_moment(port: int, unit: str) -> None:
    body = b'{"query": [' + (unit * ((12 * MIB - 20) // len(unit))).encode()
    begin = (
        time.process_time()
    )  # caller and REST server share this process; others on the machine do not count
    assert post(port, "/v1/rerank", body).status in (400, 413)
    assert time.process_time() - begin < 5


def test_an_unknown_model_is_404(port: int) -> None:
    reply = post(port, "/v1/rerank", GOOD | {"model": "rerank-english-v3.0"})
    assert reply.status == 404
    check_shape(reply)
    assert "known: embedded" in reply.json["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/rerank", 405), ("POST", "/v3", 404)])
def test_an_unknown_path_or_method_is_json_too(port: int, method: str, path: str, status: int) -> None:
    reply = call(port, method, path)
    assert reply.status == status
    check_shape(reply)


def test_a_body_in_another_encoding_is_415(port: int) -> None:
    reply = post(port, "/v1/rerank", b"\x1f\x8b", content_encoding="gzip")
    assert reply.status == 415
    check_shape(reply)


def test_without_a_server_it_is_503_and_says_when_to_come_back(refusing: int) -> None:
    with rest_server(refusing) as port:
        for reply in (post(port, "/v1/rerank", GOOD), get(port, "/health"), get(port, "/")):
            assert reply.status == 503
            assert reply.headers["retry-after"] == "1"
            check_shape(reply)
        tei = post(port, "/tei/rerank", {"query": "q", "texts": ["d"]})
        assert (tei.status, tei.json["error_type"]) == (503, "Unhealthy")


def test_a_call_that_the_server_has_ended_may_be_sent_again() -> None:
    server = ScriptedServer()
    server.script += [fail(grpc.StatusCode.CANCELLED)] * 4  # as often as the upstream client tries
    server.start()
    try:
        with rest_server(server.port) as port:
            reply = post(port, "/v1/rerank", GOOD)
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            check_shape(reply)
            assert "send it again" in reply.json["message"]
            assert post(port, "/v1/rerank", GOOD).status == 200
    finally:
        server.stop()


def test_a_proxy_that_refuses_calls_is_told_from_a_request_that_is_too_large() -> None:
    server = ScriptedServer()
    server.script.append(fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests"))
    server.start()
    try:
        with rest_server(server.port) as port:
            reply = post(port, "/v1/rerank", GOOD)
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert "refuses calls for now" in reply.json["message"]
            check_shape(reply)
    finally:
        server.stop()


def test_a_fault_of_ours_is_a_fixed_text(
    scripted: RerankServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from rerank_grpc.rest.upstream import Upstream

    def fail(*_: object) -> None:
        raise ValueError("CANARY")

    monkeypatch.setattr(Upstream, "rerank_all", fail)
    with rest_server(scripted.port) as port:
        reply = post(port, "/v1/rerank", GOOD)
    assert reply.status == 500
    check_shape(reply)
    assert b"CANARY" not in reply.raw
    assert "CANARY" not in logged(caplog)
    assert "ValueError" in caplog.text


@pytest.mark.parametrize("path", ["/api/v1/rerank", "/openrouter/rerank", "/openrouter/api/v1/rerank"])
def test_openrouters_callers_get_the_status_as_the_code(scripted: RerankServer, port: int, path: str) -> None:
    for body, status in ((GOOD | {"query": ""}, 400), (GOOD | {"model": "none"}, 404), (b"{", 400)):
        reply = call(port, "POST", path, body)
        assert reply.status == reply.json["error"]["code"] == status
        assert reply.json["error"]["message"] == reply.json["message"]
    with rest_server(scripted.port, tokens=("secret",)) as guarded:
        for refused in (post(guarded, path, GOOD), get(guarded, path), get(guarded, "/api/v1/nothing")):
            assert refused.json["error"]["code"] == refused.status in (401, 404, 405)
        assert post(guarded, "/v1/rerank", GOOD).json["error"]["code"] == "unauthenticated"
