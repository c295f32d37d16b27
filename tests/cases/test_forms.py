"""Rows about the forms of a body: spellings, numbers, options, documents, and the names in errors."""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from rerank_grpc.client import Client
from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from tests import random_models as checkpoints
from tests.client.scripted_server import ScriptedServer
from tests.rest.support import Reply, post, rest_server
from tests.support import CountingRunner, serving

QUERY = "How do I reset my password?"
DOCUMENTS = ["Our office is closed.", "Open Settings and click Forgot password.", "Ask in the forum."]
BOTH = {"query": QUERY, "documents": DOCUMENTS, "texts": DOCUMENTS}


@pytest.fixture(scope="module")
def server() -> Iterator[RerankServer]:
    """A server with the embedded model's tokenizer, whose scores hang upon every token."""
    settings = ServerSettings(models=(ModelSpec("embedded", "embedded"),))
    with serving(settings, runner=CountingRunner()) as server:
        yield server


@pytest.fixture(scope="module")
def port(server: RerankServer) -> Iterator[int]:
    with rest_server(server.port) as port:
        yield port


@pytest.fixture(scope="module")
def behind() -> Iterator[ScriptedServer]:
    """A gRPC server that keeps what it was sent."""

    def score(request: pb.RerankRequest, _context: object) -> pb.RerankResponse:
        results = [pb.RerankResult(index=at, relevance_score=0.5) for at in range(len(request.documents))]
        return pb.RerankResponse(results=results, model="m")

    server = ScriptedServer(otherwise=score)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def front(behind: ScriptedServer) -> Iterator[int]:
    with rest_server(behind.port) as port:
        yield port


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """REST for a real model that takes 128 tokens."""
    path = checkpoints.bert(tmp_path_factory.mktemp("model") / "bert")
    settings = ServerSettings(models=(ModelSpec("bert", str(path)),), precision="fp32")
    with serving(settings) as server, rest_server(server.port) as port:
        yield port


def told(reply: Reply) -> str:
    """The one text of an error, in whichever dialect."""
    text = reply.json
    while isinstance(text, dict):
        text = next(text[name] for name in ("message", "error", "detail") if name in text)
    assert isinstance(text, str)
    return text


def ranked(port: int, body: Any, path: str = "/v1/rerank") -> list[dict[str, Any]]:
    reply = post(port, path, body)
    assert reply.status == 200, reply.raw
    results: list[dict[str, Any]] = reply.json["results"]
    return results


def index_of(result: dict[str, Any]) -> Any:
    return result["index"]


# 4: both spellings of the documents


@pytest.mark.case(4)
@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/cohere/rerank", "/voyage/v1/rerank"])
def test_both_spellings_get_the_supersets_form(port: int, path: str) -> None:
    asked = BOTH | {"top_n": 2, "return_documents": False, "return_text": False}
    reply = post(port, path, asked).json
    alone = post(port, path, {"query": QUERY, "documents": DOCUMENTS, "top_n": 2}).json
    assert [(r["index"], r["relevance_score"]) for r in reply["results"]] == [
        (r["index"], r["relevance_score"]) for r in alone["results"]
    ]
    assert len(reply["results"]) == 2
    assert all("document" not in result for result in reply["results"] + reply["data"])


@pytest.mark.case(4)
def test_both_spellings_may_be_texts_and_objects(port: int) -> None:
    objects = [{"text": text, "id": str(at)} for at, text in enumerate(DOCUMENTS)]
    results = ranked(port, BOTH | {"documents": objects, "return_text": True})
    assert {r["id"]: r["document"]["text"] for r in results} == {o["id"]: o["text"] for o in objects}


@pytest.mark.case(4)
def test_below_teis_prefix_both_spellings_get_teis_form(port: int) -> None:
    reply = post(port, "/tei/rerank", BOTH | {"return_text": True}).json
    assert {result["index"]: result["text"] for result in reply} == dict(enumerate(DOCUMENTS))


@pytest.mark.case(4)
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["x", *DOCUMENTS[1:]], "texts[0]: differs from documents[0]"),
        ([*DOCUMENTS[:2], "x"], "texts[2]: differs from documents[2]"),
        ([DOCUMENTS[1], DOCUMENTS[0], DOCUMENTS[2]], "texts[0]: differs from documents[0]"),
        (DOCUMENTS[:2], "texts: holds 2, documents 3: send one, or the same"),
        ([*DOCUMENTS, "x"], "texts: holds 4, documents 3: send one, or the same"),
        ([], "texts: must not be empty"),
        (DOCUMENTS[0], "texts: must be a list of texts, not a text"),
    ],
)
def test_spellings_that_differ_are_refused_at_the_first_place(port: int, texts: Any, message: str) -> None:
    for path in ("/rerank", "/infinity/rerank"):
        reply = post(port, path, BOTH | {"texts": texts})
        assert (reply.status, told(reply)) == (400, message)


@pytest.mark.case(4)
@pytest.mark.parametrize(
    ("fields", "truncation"),
    [
        ({"truncate": False}, pb.TRUNCATION_NONE),
        ({"truncate": True, "truncation_direction": "Left"}, pb.TRUNCATION_START),
        ({"truncation_side": "left", "truncation_direction": "right"}, pb.TRUNCATION_START),
        ({"truncate": True, "truncation": False}, pb.TRUNCATION_NONE),
    ],
)
def test_with_both_spellings_the_options_count_in_either(
    behind: ScriptedServer, front: int, fields: Any, truncation: int
) -> None:
    ranked(front, BOTH | fields)
    assert behind.calls[-1].request.truncation == truncation


# 5: numbers as texts

COUNTS: dict[str, tuple[dict[str, Any], Callable[[Any], dict[str, Any]], str]] = {
    "top_n": (BOTH | {"texts": None}, lambda n: {"top_n": n}, "top_n"),
    "top_k": (BOTH | {"texts": None}, lambda n: {"top_k": n}, "top_n"),
    "TEI": (BOTH | {"documents": None}, lambda n: {"top_n": n}, "top_n"),
    "Mixedbread": ({"query": QUERY, "input": DOCUMENTS}, lambda n: {"top_k": n}, "top_n"),
    "DashScope": (
        {"input": {"query": QUERY, "documents": DOCUMENTS}},
        lambda n: {"parameters": {"top_n": n}},
        "top_n",
    ),
    "batch": (BOTH | {"texts": None, "batch_size": "8"}, lambda n: {"top_n": n}, "top_n"),
    "max_tokens_per_doc": (
        BOTH | {"texts": None},
        lambda n: {"max_tokens_per_doc": n},
        "max_tokens_per_document",
    ),
    "max_chunks_per_doc": (
        BOTH | {"texts": None},
        lambda n: {"max_chunks_per_doc": n},
        "max_chunks_per_document",
    ),
    "truncate_prompt_tokens": (
        BOTH | {"texts": None},
        lambda n: {"truncate_prompt_tokens": n},
        "max_tokens_per_document",
    ),
    "score": (
        {"text_1": QUERY, "text_2": DOCUMENTS},
        lambda n: {"truncate_prompt_tokens": n},
        "max_tokens_per_document",
    ),
}


@pytest.mark.case(5)
@pytest.mark.parametrize("number", ["2", " 2 ", "+2", "2.0", "2.", "02", 2.0])
@pytest.mark.parametrize("name", COUNTS)
def test_texts_of_digits_are_numbers(behind: ScriptedServer, front: int, name: str, number: Any) -> None:
    body, option, field = COUNTS[name]
    assert post(front, "/v1/rerank", body | option(number)).status == 200
    rerank = [call for call in behind.calls if call.method == "Rerank"][-1]
    assert getattr(rerank.request, field) == 2


@pytest.mark.case(5)
@pytest.mark.parametrize(
    ("number", "problem"),
    [
        ("-1", "must not be below 0"),
        ("2.5", "must be a whole number, not a text"),
        ("1e3", "must be a whole number, not a text"),
        ("two", "must be a whole number, not a text"),
        ("", "must be a whole number, not a text"),
        ("٢", "must be a whole number, not a text"),
        ("9" * 5_000, "must be a whole number, not a text"),
        (" " * 100_000, "must be a whole number, not a text"),
        ([2], "must be a whole number, not a list"),
        (True, "must be a whole number, not true or false"),
    ],
)
def test_other_texts_are_no_numbers(front: int, number: Any, problem: str) -> None:
    for name, field in (("top_n", "top_n"), ("DashScope", "parameters.top_n"), ("Mixedbread", "top_k")):
        body, option, _ = COUNTS[name]
        reply = post(front, "/v1/rerank", body | option(number))
        assert (reply.status, told(reply)) == (400, f"{field}: {problem}")


@pytest.mark.case(5)
def test_vllms_minus_one_may_be_a_text_too(behind: ScriptedServer, front: int) -> None:
    ranked(front, {"query": QUERY, "documents": DOCUMENTS, "truncate_prompt_tokens": "-1"})
    assert behind.calls[-1].request.max_tokens_per_document == 0


@pytest.mark.case(5)
def test_a_number_above_the_count_is_all_in_any_spelling(port: int) -> None:
    for number in ("99", "9" * 30, 10**30, "0"):
        assert len(ranked(port, {"query": QUERY, "documents": DOCUMENTS, "top_n": number})) == 3


# 9: truncation_side

# Each side has more tokens than the model takes.
TAIL = " ".join(random.Random(9).choices(["alpha", "beta", "gamma", "delta"], k=300))
SAME_END = [f"{'first ' * 300}{TAIL}", f"{'second ' * 300}{TAIL}"]


def score_form(fields: dict[str, Any]) -> dict[str, Any]:
    return {"text_1": QUERY, "text_2": SAME_END, **fields}


def superset_form(fields: dict[str, Any]) -> dict[str, Any]:
    return {"query": QUERY, "documents": SAME_END, **fields}


@pytest.mark.case(9)
@pytest.mark.parametrize("form", [superset_form, score_form])
@pytest.mark.parametrize(
    ("fields", "only_the_end_counts"),
    [
        ({}, False),
        ({"truncation_side": "right"}, False),
        ({"truncation_side": None}, False),
        ({"truncation_side": "left"}, True),
        ({"truncation_side": "LEFT"}, True),
        ({"truncation_side": "left", "truncate_prompt_tokens": 50}, True),
    ],
)
def test_left_keeps_the_end_of_a_text(
    short: int, form: Callable[[Any], Any], fields: dict[str, Any], only_the_end_counts: bool
) -> None:
    data = post(short, "/v1/rerank", form(fields)).json["data"]
    assert (data[0]["score"] == data[1]["score"]) is only_the_end_counts


@pytest.mark.case(9)
@pytest.mark.parametrize("form", [superset_form, score_form])
def test_another_side_is_refused_and_so_is_a_long_text(short: int, form: Callable[[Any], Any]) -> None:
    for side in ("middle", "", 1):
        reply = post(short, "/v1/rerank", form({"truncation_side": side}))
        assert reply.status == 400
        assert told(reply).startswith("truncation_side: must be ")
    refused = post(short, "/v1/rerank", form({"truncation_side": "left", "truncation": False}))
    assert refused.status == 400
    assert "tokens that fit" in told(refused)


@pytest.mark.case(9)
def test_max_tokens_per_query_has_no_effect(port: int) -> None:
    plain = ranked(port, {"query": QUERY, "documents": DOCUMENTS})
    assert ranked(port, {"query": QUERY, "documents": DOCUMENTS, "max_tokens_per_query": 1}) == plain


# 10: min_relevance_score, ids, truncated, documents with their own fields


@pytest.mark.case(10)
@pytest.mark.parametrize("as_text", [False, True])
def test_a_bound_leaves_out_what_is_less_relevant(server: RerankServer, port: int, as_text: bool) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS}
    found = sorted(result["relevance_score"] for result in ranked(port, body))
    bound: Any = (found[0] + found[1]) / 2
    bound = str(bound) if as_text else bound
    assert [r["relevance_score"] for r in ranked(port, body | {"min_relevance_score": bound})] == [
        found[2],
        found[1],
    ]
    with Client(f"127.0.0.1:{server.port}") as client:
        same = client.rerank(QUERY, DOCUMENTS, min_relevance_score=float(bound)).results
    assert [result.relevance_score for result in same] == [found[2], found[1]]
    assert ranked(port, body | {"min_relevance_score": 1}) == []


@pytest.mark.case(10)
@pytest.mark.parametrize(
    ("bound", "problem"),
    [
        (1.5, "is 1.5, must be from 0 to 1"),
        ("-1", "is -1, must be from 0 to 1"),
        ("high", "must be a number, not a text"),
        ("nan", "must be a number, not a text"),
        ("9" * 5_000, "must be a number, not a text"),
        (True, "must be a number, not true or false"),
    ],
)
def test_another_bound_is_refused(port: int, bound: Any, problem: str) -> None:
    reply = post(port, "/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, "min_relevance_score": bound})
    assert (reply.status, told(reply)) == (400, f"min_relevance_score: {problem}")


@pytest.mark.case(10)
def test_ids_come_back_as_they_were_sent(port: int) -> None:
    ids: list[Any] = ["a", 7, 2**60, None, ""]
    documents = [{"id": own, "text": f"text {at}"} for at, own in enumerate(ids)]
    reply = post(port, "/v1/rerank", {"query": QUERY, "documents": [*documents, "plain"]}).json
    expected = {0: "a", 1: 7, 2: 2**60}
    for name in ("results", "data"):
        assert {r["index"]: r["id"] for r in reply[name] if "id" in r} == expected


@pytest.mark.case(10)
@pytest.mark.parametrize("own", ["x" * 1_025, 1.5, 2**64, False, ["a"], {"$oid": "a"}])
def test_another_id_is_a_field_like_others(port: int, own: Any) -> None:
    document = {"text": "t", "id": own}
    first, second = sorted(ranked(port, {"query": QUERY, "documents": ["d", document]}), key=index_of)
    assert "id" not in first | second
    assert second["document"] == document
    assert post(port, "/rerank", {"query": QUERY, "texts": [document]}).status == 200


@pytest.mark.case(10)
def test_a_result_says_that_its_document_was_cut(short: int) -> None:
    body = {"query": QUERY, "documents": [*SAME_END, "short"]}
    assert {r["index"]: r.get("truncated") for r in ranked(short, body)} == {0: True, 1: True, 2: None}


@pytest.mark.case(10)
@pytest.mark.parametrize("path", ["/cohere/v1/rerank", "/jina/v1/rerank", "/v1/rerank"])
def test_objects_come_back_with_their_own_fields(port: int, path: str) -> None:
    documents = [
        {"text": "a text", "title": "t", "meta": {"page": [1, {"of": 2}]}, "null": None},
        {"content": "a content", "url": "https://example.com"},
        {"title": "no text", "year": 1999},
        "plain",
    ]
    results = ranked(port, {"query": QUERY, "documents": documents, "return_documents": True}, path)
    expected = dict(enumerate([*documents[:3], {"text": "plain"}]))
    assert {result["index"]: result["document"] for result in results} == expected


# 15: errors name the caller's own fields

LONG = "d" * 100_001
TOO_LONG = "has 100,001 characters, at most 100,000 are allowed"
WORDS = "word " * 1_000


class Form(NamedTuple):
    """A dialect's body for a query and documents, its names for both, and its word against truncation."""

    body: Callable[[str, list[str]], dict[str, Any]]
    query: str
    document: str
    listed: str
    whole: dict[str, Any] | None = None
    path: str = "/v1/rerank"


def to_each(query: str, documents: list[str]) -> list[str]:
    """One query for each document: the first is `query`, the others their own."""
    return [query, *(f"query {at}" for at in range(1, len(documents)))]


FORMS = {
    "superset": Form(
        lambda q, d: {"query": q, "documents": d},
        "query",
        "documents[{}]",
        "documents",
        {"truncation": False},
    ),
    "objects": Form(
        lambda q, d: {"query": {"text": q}, "documents": [{"text": t, "id": "i"} for t in d]},
        "query.text",
        "documents[{}].text",
        "documents",
        {"truncation": False},
    ),
    "contents": Form(
        lambda q, d: {"query": {"content": q}, "documents": [{"content": t} for t in d]},
        "query.content",
        "documents[{}].content",
        "documents",
        {"truncation": False},
    ),
    "composed": Form(
        lambda q, d: {"query": q, "documents": [{"title": "t", "body": t} for t in d]},
        "query",
        "documents[{}]",
        "documents",
        {"truncation": False},
    ),
    "rank_fields": Form(
        lambda q, d: {
            "query": q,
            "documents": [{"text": "t", "body": t} for t in d],
            "rank_fields": ["body"],
        },
        "query",
        "documents[{}]",
        "documents",
        {"truncation": False},
    ),
    "TEI": Form(lambda q, d: {"query": q, "texts": d}, "query", "texts[{}]", "texts", {"truncate": False}),
    "TEI pairs": Form(
        lambda q, d: {"inputs": [[q, t] for t in d]},
        "inputs[0][0]",
        "inputs[{}][1]",
        "inputs",
        {"truncate": False},
    ),
    "NIM": Form(
        lambda q, d: {"query": {"text": q}, "passages": [{"text": t} for t in d]},
        "query.text",
        "passages[{}].text",
        "passages",
        {"truncate": "NONE"},
    ),
    "Mixedbread": Form(lambda q, d: {"query": q, "input": d}, "query", "input[{}]", "input"),
    "DashScope": Form(
        lambda q, d: {"input": {"query": q, "documents": d}},
        "input.query",
        "input.documents[{}]",
        "input.documents",
    ),
    "score": Form(
        lambda q, d: {"text_1": q, "text_2": d}, "text_1", "text_2[{}]", "text_2", {"truncation": False}
    ),
    "score of lists": Form(
        lambda q, d: {"text_1": to_each(q, d), "text_2": d},
        "text_1[0]",
        "text_2[{}]",
        "text_1",
        {"truncation": False},
        "/score",
    ),
    "score of data": Form(
        lambda q, d: {"data_1": [{"content": q}], "data_2": d},
        "data_1[0].content",
        "data_2[{}]",
        "data_2",
        {"truncation": False},
        "/score",
    ),
    "batch": Form(
        lambda q, d: {"query": q, "documents": d, "batch_size": 8}, "query", "documents[{}]", "documents"
    ),
    "SGLang": Form(
        lambda q, d: {"query": q, "documents": d},
        "query",
        "documents[{}]",
        "documents",
        {"truncation": False},
        "/sglang/v1/rerank",
    ),
    "Weaviate": Form(
        lambda q, d: {"query": q, "documents": d, "property": ""}, "query", "documents[{}]", "documents"
    ),
    "DeepInfra": Form(
        lambda q, d: {"queries": [q], "documents": d},
        "queries[0]",
        "documents[{}]",
        "documents",
        None,
        "/deepinfra/score",
    ),
    "Pinecone": Form(
        lambda q, d: {
            "query": q,
            "documents": [{"id": "i", "text": t} for t in d],
            "rank_fields": ["text"],
        },
        "query",
        "documents[{}].text",
        "documents",
        {"parameters": {"truncate": "NONE"}},
        "/pinecone/rerank",
    ),
    "Hugging Face's pairs": Form(
        lambda q, d: {"inputs": [{"text": q, "text_pair": t} for t in d]},
        "inputs[0].text",
        "inputs[{}].text_pair",
        "inputs",
        None,
        "/huggingface",
    ),
    "Hugging Face's passages": Form(
        lambda q, d: {"inputs": {"query": q, "passages": d}},
        "inputs.query",
        "inputs.passages[{}]",
        "inputs.passages",
    ),
    "Hugging Face's sentences": Form(
        lambda q, d: {"inputs": {"source_sentence": q, "sentences": d}},
        "inputs.source_sentence",
        "inputs.sentences[{}]",
        "inputs.sentences",
    ),
}
TEN = [f"document {at}" for at in range(10)]


def faulty(index: int, text: str) -> list[str]:
    return [*TEN[:index], text, *TEN[index + 1 :]]


def refusal(port: int, form: Form, body: dict[str, Any]) -> str:
    reply = post(port, form.path, body)
    assert reply.status in (400, 422), reply.raw
    return told(reply)


@pytest.mark.case(15)
@pytest.mark.parametrize("name", FORMS)
def test_an_error_names_the_callers_own_field(port: int, name: str) -> None:
    form = FORMS[name]
    for index in (0, 7):
        message = refusal(port, form, form.body(QUERY, faulty(index, LONG)))
        assert message.startswith(f"{form.document.format(index)}: has 100,0")
    assert refusal(port, form, form.body(LONG, TEN)) == f"{form.query}: {TOO_LONG}"
    assert refusal(port, form, form.body("", TEN)) == f"{form.query}: must not be empty"
    too_many = refusal(port, form, form.body(QUERY, ["d"] * 1_001))
    assert too_many == f"{form.listed}: holds 1,001, at most 1,000 are allowed"
    if "score" not in name:
        assert refusal(port, form, form.body(QUERY, [])) == f"{form.listed}: must not be empty"


@pytest.mark.case(15)
@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.whole])
def test_a_refused_truncation_names_the_callers_own_field(short: int, name: str) -> None:
    form = FORMS[name]
    assert form.whole is not None
    message = refusal(short, form, form.body(QUERY, faulty(7, WORDS)) | form.whole)
    assert message.startswith(f"{form.document.format(7)}: has more than the ")
    message = refusal(short, form, form.body(WORDS, TEN) | form.whole)
    assert message.startswith(f"{form.query}: has more than the ")


@pytest.mark.case(15)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"query": QUERY, "texts": ["a", 1]},
            "texts[1]: must be a text, or an object with a text, not a number",
        ),
        ({"query": QUERY, "input": ["a", None]}, "input[1]: is null: send a text, or leave it out"),
        ({"query": {"text": 1}, "passages": ["a"]}, "query.text: must be a text, not a number"),
        ({"query": QUERY, "passages": [{"text": ["a"]}]}, "passages[0].text: must be a text, not a list"),
        ({"input": {"documents": ["a"]}}, "input.query: is missing"),
        ({"input": {"query": QUERY}}, "input.documents: is missing"),
        (
            {"input": {"query": QUERY, "documents": "a"}},
            "input.documents: must be a list of texts, not a text",
        ),
        ({"inputs": ["a"]}, "inputs: must be a pair of texts"),
        ({"inputs": [["a", "b"], ["a"]]}, "inputs[1]: must be a pair of texts"),
        ({"inputs": [LONG, "b"]}, f"inputs[0]: {TOO_LONG}"),
        ({"inputs": ["a", LONG]}, f"inputs[1]: {TOO_LONG}"),
        ({"text_1": "a", "text_2": LONG}, f"text_2: {TOO_LONG}"),
        ({"queries": "a", "documents": ["b", {"text": LONG}]}, f"documents[1].text: {TOO_LONG}"),
        ({"query": QUERY, "documents": ["a"], "instruct": LONG}, f"instruct: {TOO_LONG}"),
        (
            {"query": QUERY, "documents": ["a"], "kwargs": json.dumps({"instruct": LONG})},
            f"kwargs.instruct: {TOO_LONG}",
        ),
        (
            {"input": {"query": QUERY, "documents": ["a"]}, "parameters": {"instruct": LONG}},
            f"parameters.instruct: {TOO_LONG}",
        ),
    ],
)
def test_each_dialect_names_what_its_caller_sent(port: int, body: dict[str, Any], message: str) -> None:
    reply = post(port, "/v1/rerank", body)
    assert reply.status in (400, 422)
    assert told(reply) == message


@pytest.mark.case(15)
def test_of_many_queries_the_failing_one_is_named(port: int) -> None:
    queries, texts = ["p", "q", "p", "q"], ["a", "b", "c", LONG]
    assert told(post(port, "/score", {"text_1": queries, "text_2": texts})) == f"text_2[3]: {TOO_LONG}"
    queries = ["p", "q", LONG, "q"]
    assert told(post(port, "/score", {"text_1": queries, "text_2": TEN[:4]})) == f"text_1[2]: {TOO_LONG}"


# 23: images and content parts as documents


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.case(23)
@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"text": "a"}, "a"),
        ({"text": "a", "image": "https://example.com/a.png"}, "a"),
        ({"text": None, "content": "a"}, "a"),
        ({"content": [part("a"), part("b")]}, "a\nb"),
        ([part("a"), {"text": "b"}, {"type": "input_text", "text": "c"}], "a\nb\nc"),
        ({"title": "a"}, "a"),
        (
            {"id": 7, "title": "a", "body": "b", "year": 1999, "new": True},
            "title: a\nbody: b\nyear: 1999\nnew: true",
        ),
        ({"page_content": "a", "metadata": {"page": 1}, "vector": [0.5], "empty": None}, "a"),
        ({"title": "a", "type": "video", "image": "https://example.com/a.png"}, "a"),
    ],
)
def test_the_text_of_an_object_is_found(behind: ScriptedServer, front: int, document: Any, text: str) -> None:
    reply = post(front, "/v1/rerank", {"query": QUERY, "documents": ["plain", document]}).json
    assert [sent.text for sent in behind.calls[-1].request.documents] == ["plain", text]
    assert reply["data"][1]["document"] == text
    for name, form in (("texts", {"return_text": True}), ("passages", {}), ("input", {})):
        assert post(front, "/v1/rerank", {"query": QUERY, name: ["plain", document], **form}).status == 200
        assert [sent.text for sent in behind.calls[-1].request.documents] == ["plain", text]


@pytest.mark.case(23)
@pytest.mark.parametrize(
    ("query", "text"),
    [({"text": "q"}, "q"), ({"content": [part("q"), part("r")]}, "q\nr"), ([part("q")], "q")],
)
def test_a_query_may_be_parts_too(behind: ScriptedServer, front: int, query: Any, text: str) -> None:
    ranked(front, {"query": query, "documents": ["d"]})
    assert behind.calls[-1].request.query == text


@pytest.mark.case(23)
@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, ": is null: send a text, or leave it out"),
        ({"image": "https://example.com/a.png"}, ": images are not served: send a text"),
        ({"image": "iVBORw0KGgo=", "id": "1", "text": None}, ": images are not served: send a text"),
        ({"type": "image_url", "image_url": {"url": "data:"}}, ": images are not served: send a text"),
        ({"video": ["a.png"]}, ": videos are not served: send a text"),
        ({"type": "input_audio", "input_audio": {"data": ""}}, ": sounds are not served: send a text"),
        (
            {"content": [part("a"), {"type": "image_url", "image_url": {"url": "data:"}}]},
            ".content[1]: images are not served: send a text",
        ),
        ([part("a"), {"type": "image", "text": "alt"}], "[1]: images are not served: send a text"),
        ([part("a"), "b"], "[1]: must be a part of type text, not a text"),
        ({"content": []}, ": has no text: send a text, or an object with a text"),
        ({"content": 5}, ".content: must be a text, not a number"),
        ({"content": {"text": "a"}}, ".content: must be a text, not an object"),
        ({}, ": has no text: send a text, or an object with a text"),
        ({"id": "1", "vector": [1.5]}, ": has no text: send a text, or an object with a text"),
        ({"type": "text", "text": None}, ": has no text: send a text, or an object with a text"),
        ({"type": ["image"], "parts": []}, ": has no text: send a text, or an object with a text"),
        (1, ": must be a text, or an object with a text, not a number"),
        (True, ": must be a text, or an object with a text, not true or false"),
        ([], ": must be a text, or an object with a text, not a list"),
    ],
)
def test_what_is_no_text_is_named(front: int, document: Any, message: str) -> None:
    for name in ("documents", "input"):
        reply = post(front, "/v1/rerank", {"query": QUERY, name: ["plain", document]})
        assert (reply.status, told(reply)) == (400, f"{name}[1]{message}")


@pytest.mark.case(23)
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"image": "a.png"}, "query: images are not served: send a text"),
        ({"title": "q"}, "query: has no text: send a text, or an object with a text"),
        ([part("q"), {"type": "image_url"}], "query[1]: images are not served: send a text"),
        (["q"], "query[0]: must be a part of type text, not a text"),
        (5, "query: must be a text, or an object with a text, not a number"),
    ],
)
def test_a_query_that_is_no_text_is_named(front: int, query: Any, message: str) -> None:
    reply = post(front, "/v1/rerank", {"query": query, "documents": ["d"]})
    assert (reply.status, told(reply)) == (400, message)
