"""500 odd JSON bodies for each path: answered or refused as the caller's fault, within a second."""

from __future__ import annotations

import codecs
import http.client
import json
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rerank_grpc.config.settings import ANY_NAME, ModelSpec, ServerSettings
from rerank_grpc.rest.connect.protocol import STATUSES
from rerank_grpc.rest.connect.stream import STREAM_PATH
from tests.rest.golden import callers, exchanges
from tests.rest.support import HOST, enveloped, opened, post, rest_server
from tests.support import CountingRunner, serving

COUNT, SECONDS = 500, 1.0
BODY = {"query": "q", "documents": ["one", "two"]}


def golden() -> dict[str, list[Any]]:
    """Collects the bodies that real callers send, by their paths."""
    bodies: dict[str, list[Any]] = {}
    for caller in callers():
        for exchange in exchanges(caller):
            if exchange.get("method", "POST") == "POST" and isinstance(exchange.get("body"), dict):
                bodies.setdefault(exchange["path"].partition("?")[0], []).append(exchange["body"])
    del bodies["/rerank.v1.RerankService/Nothing"]  # which Connect does not offer
    bodies[STREAM_PATH] = bodies["/rerank.v1.RerankService/Rerank"]
    for method in ("ListModels", "Health"):
        bodies[f"/rerank.v1.RerankService/{method}"] = [{}, {"model": "embedded"}]
    return bodies


GOLDEN = golden()
NUMBERS = (0, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, float("nan"), float("inf"), -0.0, 0.5)
TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "a\udfffb",
    "\u202e",
    "\ufeff",
    "\r\n\x1b[31m",
    "1",
    "true",
    "null",
    "👩‍👩‍👧",
)
LONG = ("a" * 100_001, "word " * 25_000, "\u0301" * 50_000)
ODD: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], [{}], {"": ""}, *NUMBERS, *TEXTS, *LONG)

odd = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
DEEP = 100_000
# No JSON, or hardly: bytes as they are.
WHOLE = (
    b"",
    b" ",
    b"\0",
    b"null",
    b"[]",
    b'"text"',
    b"NaN",
    b"{",
    b"[" * DEEP,
    b'{"a":' * DEEP,
    b"[" * DEEP + b"]" * DEEP,
    b'{"query":' + b"[" * DEEP + b"]" * DEEP + b"}",
    b'{"query": "q", "documents": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    b'{"query": "q", "query": ["q"], "documents": ["d"], "documents": 7}',
    b'{"query": "q", "documents": ["d"], "top_n": ' + b"9" * 100_000 + b"}",
    b'{"query": "q", "documents": ["d"], "top_n": 1e' + b"9" * 400 + b"}",
    b'{"query": "\\ud800", "documents": ["\\udfff", "\\ud83d\\ude00"]}',
    b'{"query": "\xed\xa0\x80", "documents": ["\xff"]}',
    codecs.BOM_UTF8 + b'{"query": "q", "documents": ["d"]}',
    '{"query": "q", "documents": ["d"]}'.encode("utf-16"),
    '{"query": "q", "documents": ["d"]}'.encode("utf-32-le"),
    b'{"query": "q", "documents": ["d"]} {"query": "q"}',
    b'{"query": "q", "documents": ["d"],}',
    b"{'query': 'q', 'documents': ['d']}",
    b"query=q&documents=d",
    b"<xml/>",
)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the place of each value within a value, itself first."""
    yield place
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*place, key))


def put(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """Makes a value that has another one at a place; Ellipsis leaves it out."""
    if not place:
        return new
    key, *rest = place
    items = dict(value.items() if isinstance(value, dict) else enumerate(value))
    items[key] = put(items[key], tuple(rest), new)
    if items[key] is ...:
        del items[key]
    return items if isinstance(value, dict) else list(items.values())


@st.composite
def bodies_like(draw: Any, sound: list[Any]) -> bytes:
    """Makes bodies of which some places hold what does not belong there, or that are mutated bytes."""
    body = draw(st.sampled_from(sound))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(list(places(body))))
        body = put(body, place, draw(odd | st.just(...)))
        if body is ...:
            body = {}
    written = json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 4)) == 0:
        begin = draw(st.integers(0, len(written)))
        end = draw(st.integers(begin, min(len(written), begin + 4)))
        written = written[:begin] + draw(st.binary(max_size=4)) + written[end:]
    return written


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    own = ServerSettings(models=(ModelSpec("embedded", "embedded", (ANY_NAME,)),))
    with serving(own, runner=CountingRunner()) as server, rest_server(server.port) as port:
        yield port


class Answer(NamedTuple):
    status: int
    content_type: str | None
    body: bytes
    seconds: float  # of processor time, by caller and server

    def __str__(self) -> str:
        return f"{self.status} {self.body[:200]!r} after {self.seconds:.2f} s"


def asked(connection: http.client.HTTPConnection, path: str, body: bytes) -> Answer:
    """Sends a body, and reads what the server says of it; of a stream, what its end says."""
    started = time.process_time()
    if path == STREAM_PATH:
        return of_stream(connection, body, started)
    connection.request("POST", path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    seconds = time.process_time() - started
    return Answer(response.status, response.headers["content-type"], answer, seconds)


def of_stream(connection: http.client.HTTPConnection, body: bytes, started: float) -> Answer:
    """Sends a body in an envelope."""
    connection.request("POST", STREAM_PATH, enveloped(body), {"content-type": "application/connect+json"})
    _, end = opened(connection.getresponse().read())
    status = STATUSES[end["error"]["code"]] if end else 200
    return Answer(status, "application/json", json.dumps(end).encode(), time.process_time() - started)


@pytest.mark.parametrize("path", GOLDEN)
def test_no_body_breaks_the_server(port: int, path: str) -> None:
    bodies = (
        st.sampled_from(WHOLE) | bodies_like(GOLDEN[path]) | bodies_like(GOLDEN[path]) | bodies_like([BODY])
    )

    with closing(http.client.HTTPConnection(HOST, port, timeout=20)) as connection:

        @given(body=bodies)
        @settings(
            max_examples=COUNT,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=[*HealthCheck],
        )
        def ask(body: bytes) -> None:
            answer = asked(connection, path, body)
            if answer.seconds >= SECONDS:  # a full collection of Python's may have come between
                answer = asked(connection, path, body)
            shown = f"{answer}: {len(body):,} bytes, {body[:300]!r}"
            assert answer.status < 500, shown
            assert answer.seconds < SECONDS, shown
            json.loads(answer.body)  # whatever it says, it can be read
            assert answer.content_type == "application/json", shown

        ask()
    assert post(port, "/v1/rerank", BODY).status == 200
