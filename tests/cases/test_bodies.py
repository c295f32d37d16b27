"""Bodies as the field sends them: cut emojis, byte order marks, other encodings, too much text."""

import codecs
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rerank_grpc.client import Client, Document, MessageTooLarge, RerankRequest
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest import body as bodies
from rerank_grpc.server.server import RerankServer
from tests.rest.support import Reply, post, rest_server
from tests.support import CountingRunner, serving

CONNECT = "/rerank.v1.RerankService/Rerank"


@pytest.fixture(scope="module")
def server() -> Iterator[RerankServer]:
    """A server whose scores depend on every word."""
    with serving(runner=CountingRunner()) as server:
        yield server


@pytest.fixture(scope="module")
def port(server: RerankServer) -> Iterator[int]:
    with rest_server(server.port) as port:
        yield port


Form = Callable[[str, list[str]], dict[str, Any]]
# Dialects, with the path, the body and where the scores stand in a reply.
FORMS: dict[str, tuple[str, Form, Callable[[Any], dict[int, float]]]] = {
    "superset": (
        "/v1/rerank",
        lambda query, texts: {"query": query, "documents": texts},
        lambda reply: {result["index"]: result["relevance_score"] for result in reply["results"]},
    ),
    "TEI": (
        "/rerank",
        lambda query, texts: {"query": query, "texts": texts},
        lambda reply: {result["index"]: result["score"] for result in reply},
    ),
    "NIM": (
        "/v1/ranking",
        lambda query, texts: {"query": {"text": query}, "passages": [{"text": text} for text in texts]},
        lambda reply: {result["index"]: result["logit"] for result in reply["rankings"]},
    ),
    "Mixedbread": (
        "/v1/reranking",
        lambda query, texts: {"query": query, "input": texts},
        lambda reply: {result["index"]: result["score"] for result in reply["data"]},
    ),
    "score": (
        "/score",
        lambda query, texts: {"text_1": query, "text_2": texts},
        lambda reply: {result["index"]: result["score"] for result in reply["data"]},
    ),
    "Connect": (
        CONNECT,
        lambda query, texts: {"query": query, "documents": [{"text": text} for text in texts]},
        lambda reply: {result["index"]: result["logit"] for result in reply["results"]},
    ),
}


def send(port: int, path: str, body: bytes) -> Reply:
    return post(port, path, body, content_type="application/json")


# Escapes as they stand between quotes, and the text that is meant.
CUT = {
    "a high half at the end": (r"two \ud83d", "two \ufffd"),
    "a low half at the beginning": (r"\udc00 two", "\ufffd two"),
    "a high half before a text": (r"\ud83dx", "\ufffdx"),
    "a high half before an escape": (r"\ud83d\n\ud83d\u0041", "\ufffd\n\ufffdA"),
    "two high halves": (r"\ud83d\uD83D", "\ufffd\ufffd"),
    "a high half before an emoji": (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
    "a low half behind an emoji": (r"\ud83d\ude00\ude00", "\U0001f600\ufffd"),
    "the halves in the wrong order": (r"\ude00\ud83d", "\ufffd\ufffd"),
    "a backslash before one": (r"\\\ud83d", "\\\ufffd"),
    "a half before a backslash": (r"\ud83d\\ude00", "\ufffd\\ude00"),
    "beside a backslash and a word like one": (r"\\ud83d \\\\udc00 \udc00", r"\ud83d \\udc00 " + "\ufffd"),
}


@pytest.mark.case(6)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CUT)
def test_half_an_emoji_is_scored_as_a_replacement_character(port: int, form: str, case: str) -> None:
    escaped, meant = CUT[case]
    path, body, scores = FORMS[form]
    sent = json.dumps(body("QUERY", ["one", "TEXT", "three"]))
    cut = send(port, path, sent.replace("QUERY", escaped).replace("TEXT", escaped).encode())
    whole = send(port, path, json.dumps(body(meant, ["one", meant, "three"])).encode())
    assert cut.status == whole.status == 200, cut.raw
    assert scores(cut.json) == scores(whole.json)
    other = send(port, path, json.dumps(body(meant, ["one", "two", "three"])).encode())
    assert scores(whole.json) != scores(other.json)


@pytest.mark.case(6)
def test_half_an_emoji_in_a_name_or_in_an_ignored_field_does_no_harm(port: int) -> None:
    body = rb'{"query": "q", "documents": ["d"], "\udc00": "\ud83d", "user": "\ud83d"}'
    assert send(port, "/v1/rerank", body).status == 200


@pytest.mark.case(6)
@pytest.mark.parametrize(
    "text", [rb"\ud83d\uZZZZ", rb"\ud83d\u12", b"\\ud83d\0\0", b"\\ud83d\xff", rb"\ud83d\x", b"\\ud83d\n"]
)
def test_what_is_wrong_besides_stays_wrong(port: int, text: bytes) -> None:
    assert send(port, "/v1/rerank", b'{"query": "q", "documents": ["' + text + b'"]}').status == 400


@pytest.mark.case(6)
@pytest.mark.parametrize(("more", "status"), [(0, 200), (1, 400)])
def test_more_halves_than_texts_can_be_cut_into_are_refused(port: int, more: int, status: int) -> None:
    halves = rb"\ud83dx" * (bodies.MAX_SURROGATES + more)
    body = b'{"query": "q", "documents": ["d"], "user": "' + halves + b'"}'
    assert send(port, "/v1/rerank", body).status == status


@pytest.mark.case(6)
@pytest.mark.parametrize(
    "unit", [rb"\ud83d", rb"\ud83d\ude00", rb"\\", rb"\\\ud83d", rb"\u", "é", rb"\udc00x"]
)
def test_the_longest_bodies_are_mended_in_a_moment(port: int, unit: bytes | str) -> None:
    unit = unit if isinstance(unit, bytes) else unit.encode()
    body = b'{"query": "' + unit * ((LIMITS.body_bytes - 40) // len(unit)) + rb'\ud83d"}'
    begin = (
        time.process_time()
    )  # caller and REST server share this process; others on the machine do not count
    assert send(port, "/v1/rerank", body).status == 400
    assert time.process_time() - begin < 5


@pytest.mark.case(7)
@pytest.mark.parametrize("form", FORMS)
def test_a_byte_order_mark_is_skipped(port: int, form: str) -> None:
    path, body, scores = FORMS[form]
    plain = json.dumps(body("q", ["\ufeffone", "two"]), ensure_ascii=False).encode()
    with_mark = send(port, path, codecs.BOM_UTF8 + plain)
    assert with_mark.status == 200
    assert scores(with_mark.json) == scores(send(port, path, plain).json)


@pytest.mark.case(7)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_encodings_of_unicode_are_named(port: int, encoding: str) -> None:
    body = json.dumps({"query": "q", "documents": ["d"]}).encode(encoding)
    for path in ("/v1/rerank", "/tei/rerank", CONNECT):
        reply = send(port, path, body)
        assert reply.status in (400, 422)
        assert f"{encoding[:6].upper()}: send JSON in UTF-8" in reply.raw.decode()


START = b'{"query": "caf'
NOT_UTF8 = {
    "Latin-1": b"\xe9",
    "a sequence cut off": b"\xe2\x82",
    "an overlong slash": b"\xc0\xaf",
    "an overlong zero": b"\xc0\x80",
    "a surrogate as in CESU-8": b"\xed\xa0\xbd\xed\xb8\x80",
    "beyond Unicode": b"\xf5\x80\x80\x80",
    "Shift JIS": "カ".encode("shift_jis"),
    "GBK": "密码".encode("gbk"),
}


@pytest.mark.case(8)
@pytest.mark.parametrize("path", ["/v1/rerank", "/tei/rerank", CONNECT])
@pytest.mark.parametrize("case", NOT_UTF8)
def test_a_body_that_is_not_utf8_is_told_at_which_byte(port: int, case: str, path: str) -> None:
    for start in (START, codecs.BOM_UTF8 + START, b'{"query": "\xf0\x9f\x98\x80'):
        for end in (b'", "documents": ["d"]}', b""):
            reply = send(port, path, start + NOT_UTF8[case] + end)
            assert reply.status in (400, 422)
            text = f"not UTF-8: see its byte at offset {len(start)}; send JSON in UTF-8"
            assert text in reply.raw.decode()
            assert b"caf" not in reply.raw


@pytest.mark.case(8)
def test_a_fault_of_json_is_told_by_its_place_alone(port: int) -> None:
    for body in (b'{"query": "CANARY"', b'{"query": CANARY}', b'{"query": "CANARY" "documents"}', b"CANARY"):
        reply = send(port, "/v1/rerank", body)
        assert "the body is not JSON: " in reply.json["message"]
        assert "column" in reply.json["message"]
        assert b"CANARY" not in reply.raw


LONG = ["d" * 99_000] * 95  # as many bytes
CJK = ["密" * 99_000] * 35  # three bytes for each


@pytest.mark.case(14)
@pytest.mark.parametrize("texts", [LONG, CJK], ids=["ASCII", "CJK"])
@pytest.mark.parametrize("form", FORMS)
def test_too_much_text_is_refused_with_its_size_and_the_limit(port: int, form: str, texts: list[str]) -> None:
    path, body, _ = FORMS[form]
    reply = send(port, path, json.dumps(body("q", texts), ensure_ascii=False).encode())
    assert reply.status == (429 if form == "Connect" else 413)
    text = reply.raw.decode()
    size = sum(len(text.encode()) for text in texts)
    told = int(text.partition("the request has ")[2].partition(" bytes")[0].replace(",", ""))
    assert size < told < size + 2_000
    assert "at most 8,388,608 bytes (8 MiB) are allowed: send fewer or shorter documents" in text
    assert "retry-after" not in reply.headers


@pytest.mark.case(14)
@pytest.mark.parametrize("path", ["/v1/rerank", "/tei/rerank", CONNECT])
def test_a_body_beyond_even_escaped_text_is_told_both_limits(port: int, path: str) -> None:
    body = json.dumps({"query": "q", "documents": CJK[:25]}).encode()
    assert len(body) > LIMITS.body_bytes
    reply = send(port, path, body)
    assert reply.status == (429 if path == CONNECT else 413)
    assert b"more than 12,582,912 bytes (12 MiB)" in reply.raw
    assert b"at most 8,388,608 bytes (8 MiB) of text" in reply.raw


@pytest.mark.case(14)
def test_text_within_the_limit_is_taken_in_any_writing_and_grpc_has_the_same_limit(
    server: RerankServer, port: int
) -> None:
    plain = {"query": "q", "documents": ["密" * 99_000] * 27}  # 8.0 MB
    assert send(port, "/v1/rerank", json.dumps(plain, ensure_ascii=False).encode()).status == 200
    escaped = {"query": "q", "documents": ["é" * 99_000] * 20}  # 4.0 MB, which become 11.9
    assert send(port, "/v1/rerank", json.dumps(escaped).encode()).status == 200
    with Client(f"127.0.0.1:{server.port}") as client:
        assert len(client.rerank("q", plain["documents"]).results) == 27
        for texts in (LONG, CJK):
            request = RerankRequest("q", tuple(map(Document, texts)))
            with pytest.raises(MessageTooLarge):
                client.send(request)
