"""Documents in a body: rank_fields, depth, sizes, whether they come back; both spellings at once."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest.forms import documents
from rerank_grpc.server.server import RerankServer
from tests.rest.support import post, rest_server
from tests.support import processor_time

QUERY = "q"
PANDA = {"title": "panda", "body": "a bear", "year": 1869, "tags": ["a", {"b": 1}], "id": "p", "none": None}


def text_of(item: Any, *rank_fields: str) -> str:
    return documents.read({"d": [item]}, "d", rank_fields).texts[0]


@pytest.mark.parametrize(
    ("rank_fields", "text"),
    [
        (("title", "body"), "title: panda\nbody: a bear"),
        (("body", "title"), "body: a bear\ntitle: panda"),
        (("body",), "a bear"),
        (("year",), "1869"),
        (("tags",), '["a",{"b":1}]'),
        (("id", "missing", "none"), "id: p"),
        (("title", "tags"), 'title: panda\ntags: ["a",{"b":1}]'),
    ],
)
def test_rank_fields_are_scored_in_their_order(rank_fields: tuple[str, ...], text: str) -> None:
    assert text_of(PANDA, *rank_fields) == text


def test_rank_fields_go_before_text_and_leave_texts_alone() -> None:
    given = documents.read({"d": ["plain", {"text": "t", "body": "b"}]}, "d", ("body",))
    assert given.texts == ["plain", "b"]
    assert [given.field(at) for at in (0, 1)] == ["d[0]", "d[1]"]


def test_a_document_without_any_of_them_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"^d\[1\]: has none of the rank_fields$"):
        documents.read({"d": [{"body": "b"}, {"text": "t"}]}, "d", ("body",))


def test_rank_fields_are_few_texts_and_each_counts_once() -> None:
    assert documents.rank_fields({"rank_fields": ["b", "a", "b"]}) == ["b", "a"]
    assert documents.rank_fields({"rank_fields": None}) == documents.rank_fields({"rank_fields": []}) == []
    for wrong in ("body", [1], {"body": True}, ["a"] * 65):
        with pytest.raises(InvalidRequest, match=r"^rank_fields: "):
            documents.rank_fields({"rank_fields": wrong})


@pytest.mark.parametrize(
    "path", ["/v1/rerank", "/cohere/v1/rerank", "/together/v1/rerank", "/mixedbread/rerank"]
)
def test_rank_fields_reach_the_scores(port: int, path: str) -> None:
    named = {"body": "a bear", "text": "something else"}
    name = "input" if "mixedbread" in path else "documents"
    scores = {}
    bodies: dict[str, Any] = {
        "named": {name: [named], "rank_fields": ["body"]},
        "plain": {name: ["a bear"]},
        "text": {name: [named]},
    }
    for key, body in bodies.items():
        reply = post(port, path, {"query": QUERY, **body}).json
        scores[key] = reply["data"][0]["score"]
    assert scores["named"] == scores["plain"] != scores["text"]


@pytest.mark.parametrize(("levels", "status"), [(200, 200), (260, 400), (1_000, 400)])
def test_an_object_nested_too_deeply_to_come_back_is_refused(port: int, levels: int, status: int) -> None:
    document = b'{"text":"t","deep":%s1%s}' % (b"[" * levels, b"]" * levels)
    reply = post(port, "/v1/rerank", b'{"query": "q", "documents": [%s]}' % document)
    assert reply.status == status
    wanted = b'"document":%s' % document if status == 200 else b'"documents[0]: is nested too deeply"'
    assert wanted in reply.raw


def test_a_content_part_nested_too_deeply_to_come_back_is_refused(port: int) -> None:
    parts = b'[{"type":"text","text":"a","deep":%s1%s}]' % (b"[" * 300, b"]" * 300)
    reply = post(port, "/v1/reranking", b'{"query": "q", "input": [%s], "return_input": true}' % parts)
    assert (reply.status, reply.json["message"]) == (400, "input[0]: is nested too deeply")


@pytest.mark.parametrize(
    "document",
    [
        {f"field{at}": "x" for at in range(300_000)},
        {"text": "t", "vector": [0] * 3_000_000},
        {"content": [{"type": "text", "text": ""}] * 400_000},
        [{"text": ""}] * 400_000,
        {"image": "x" * 9_000_000},
    ],
    ids=["fields", "vector", "parts", "list", "image"],
)
def test_one_huge_document_takes_no_more_than_a_moment(document: Any) -> None:
    # Measured without HTTP: the body is at its limit, and other processes do not count.
    with processor_time() as seconds:
        with suppress(InvalidRequest):
            documents.read({"d": [document]}, "d", ())
        assert seconds() < 3


def test_many_rank_fields_of_many_documents_take_no_more_than_a_moment() -> None:
    names = [f"field{at}" for at in range(64)]
    body = {"d": [dict.fromkeys(names, "x" * 100) for _ in range(LIMITS.documents)]}
    with processor_time() as seconds:
        assert len(documents.read(body, "d", names).texts[0]) == 64 * 100 + len("\n".join(names)) + 2 * 64
        assert seconds() < 3


@pytest.fixture(scope="module")
def asked(scripted: RerankServer) -> Iterator[int]:
    with rest_server(scripted.port, documents="asked") as port:
        yield port


BODY = {"query": QUERY, "documents": ["a", {"text": "b", "own": 1}]}


def shown(port: int, path: str, **fields: Any) -> list[Any]:
    """The documents of the results, in the caller's order; "absent" where there is none."""
    results = post(port, path, BODY | fields).json["results"]
    return [r.get("document", "absent") for r in sorted(results, key=lambda r: r["index"])]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank", "/voyage/rerank", "/api/v1/rerank"])
def test_documents_come_back_unless_refused_or_by_setting_if_asked(port: int, asked: int, path: str) -> None:
    objects = [{"text": "a"}, {"text": "b", "own": 1}]
    assert shown(port, path) == shown(port, path, return_documents=None) == objects
    assert shown(port, path, return_documents=False) == ["absent"] * 2
    assert shown(asked, path) == shown(asked, path, return_documents="false") == ["absent"] * 2
    assert shown(asked, path, return_documents=True) == objects


def test_infinitys_documents_are_texts(port: int, asked: int) -> None:
    assert shown(port, "/infinity/rerank") == ["a", "b"]
    assert shown(asked, "/infinity/rerank") == ["absent"] * 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": QUERY, "texts": ["a"]}),
        ("/v1/ranking", {"query": {"text": QUERY}, "passages": [{"text": "a"}]}),
        ("/v1/reranking", {"query": QUERY, "input": ["a"]}),
        ("/dashscope/rerank", {"input": {"query": QUERY, "documents": ["a"]}}),
    ],
)
def test_other_dialects_keep_their_own_default(port: int, path: str, body: Any) -> None:
    assert b'"a"' not in post(port, path, body).raw


def test_mixedbreads_input_comes_back_as_it_was_sent(port: int) -> None:
    sent = ["a", {"text": "b", "own": 1}]
    data = post(port, "/v1/reranking", {"query": QUERY, "input": sent, "return_input": True}).json["data"]
    assert {result["index"]: result["input"] for result in data} == dict(enumerate(sent))


def test_the_largest_reply_stays_within_twice_its_body(port: int) -> None:
    documents_sent = [{"text": "x" * 10_000} for _ in range(800)]
    reply = post(port, "/v1/rerank", {"query": QUERY, "documents": documents_sent})
    assert reply.status == 200
    assert len(reply.raw) < 2 * 800 * 10_000 + 800 * 200
