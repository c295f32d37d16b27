"""Rows 24 and 25: texts without a visible character, as query and as document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.scores import EMPTY_LOGIT
from rerank_grpc.sequence import Sequence
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.rest.support import post, rest_server
from tests.server.test_errors import details_of
from tests.support import WAIT, CountingRunner, request_of, serving, stub_of

BLANK = {
    "empty": "",
    "a space": " ",
    "white space": "\t\r\n\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000",
    "zero width": "\u200b\u200c\u200d\u2060\ufeff",
    "a soft hyphen": "\xad",
    "control characters": "\x00\x01\x1b\x7f\x9f",
    "directions": "\u200e\u200f\u202a\u202e\u2066\u2069",
    "tags and selectors": "\ufe0f\U000e0001\U000e0101",
    "fillers": "\u115f\u3164\uffa0",
    "all that fits": " \u200b" * 50_000,
}
SEEN = {"behind blanks": " \u200b x", "a full stop": ".", "private use": "\ue000", "a mark": "\u0301"}
DOCUMENTS = ["a longer text", "", "word", "\u200b", " \n", "two words"]
BLANK_AT = [1, 3, 4]
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "superset": ("/v1/rerank", {"documents": ["d"]}),
    "voyage": ("/v1/rerank", {"documents": ["d"], "top_k": 1}),
    "batch": ("/rerank", {"documents": ["d"], "batch_size": 1}),
    "mixedbread": ("/v1/rerank", {"input": ["d"]}),
}


def call(server: RerankServer, method: str, query: str, documents: list[pb.Document]) -> list[Any]:
    """Calls either method; returns the messages of its answer."""
    with stub_of(server.port) as stub:
        if method == "Rerank":
            return [stub.Rerank(pb.RerankRequest(query=query, documents=documents), timeout=WAIT)]
        return list(stub.StreamRerank(pb.StreamRerankRequest(query=query, documents=documents), timeout=WAIT))


@pytest.fixture(scope="module")
def server() -> Iterator[RerankServer]:
    with serving(runner=CountingRunner()) as server:
        yield server


@pytest.fixture(scope="module")
def port(server: RerankServer) -> Iterator[int]:
    with rest_server(server.port) as port:
        yield port


@pytest.mark.case(24)
@pytest.mark.parametrize("kind", BLANK)
@pytest.mark.parametrize("method", ["Rerank", "StreamRerank"])
def test_a_blank_query_is_refused_as_an_empty_one_over_grpc(
    server: RerankServer, method: str, kind: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(server, method, BLANK[kind], [pb.Document(text="d")])
    error = caught.value
    status, _ = details_of(error)
    (violation,) = error_details_pb2.BadRequest.FromString(status.details[1].value).field_violations
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violation.field == "query"
    assert violation.description.startswith("must not be empty")
    assert error.details() == f"query: {violation.description}"


@pytest.mark.case(24)
@pytest.mark.parametrize("kind", SEEN)
def test_one_visible_character_is_a_query(server: RerankServer, kind: str) -> None:
    with stub_of(server.port) as stub:
        assert len(stub.Rerank(request_of(SEEN[kind], "d"), timeout=WAIT).results) == 1


@pytest.mark.case(24)
@pytest.mark.parametrize("dialect", CALLS)
@pytest.mark.parametrize("query", ["", " ", "\u200b"], ids=ascii)
def test_a_blank_query_is_400_over_rest(port: int, dialect: str, query: str) -> None:
    path, body = CALLS[dialect]
    reply = post(port, path, {"query": query, **body})
    assert (reply.status, reply.json["message"][:24]) == (400, "query: must not be empty")


@pytest.mark.case(24)
@pytest.mark.parametrize("query", ["", " ", "\u200b"], ids=ascii)
def test_other_dialects_say_it_in_their_own_form(port: int, query: str) -> None:
    tei = post(port, "/rerank", {"query": query, "texts": ["d"]})
    assert (tei.status, tei.json["error_type"]) == (400, "Empty")
    for path, body in (
        ("/v1/ranking", {"query": {"text": query}, "passages": [{"text": "d"}]}),
        ("/score", {"text_1": query, "text_2": "d"}),
        ("/v1/rerank", {"input": {"query": query, "documents": ["d"]}}),
    ):
        assert post(port, path, body).status == 400, path
    assert post(port, "/bge-reranker-base/post", {"text_pairs": [[query, "d"]]}).json["code"] == -1


def shortest_first(sequence: Sequence) -> float:
    """A weak model: the less a document says, the higher it ranks."""
    return -float(len(sequence))


def reranked(blank_documents: str, method: str = "Rerank", **fields: Any) -> list[pb.RerankResult]:
    runner = CountingRunner(shortest_first)
    documents = [pb.Document(text=text, id=str(index)) for index, text in enumerate(DOCUMENTS)]
    with (
        serving(ServerSettings(blank_documents=blank_documents), runner=runner) as server,
        stub_of(server.port) as stub,
    ):
        if method == "Rerank":
            results = list(stub.Rerank(pb.RerankRequest(query="q", documents=documents, **fields)).results)
        else:
            request = pb.StreamRerankRequest(query="q", documents=documents, **fields)
            results = [result for part in stub.StreamRerank(request) for result in part.results]
    blank = len(BLANK_AT) if blank_documents == "last" else 0
    assert runner.sequences <= len(DOCUMENTS) - blank
    return results


def places(results: list[pb.RerankResult]) -> list[int]:
    return [result.index for result in results]


@pytest.mark.case(25)
def test_blank_documents_are_scored_like_others_and_may_rank_first() -> None:
    results = reranked("scored")
    assert places(results[:2]) == [1, 4]  # the words of the scripted tokenizer are what spaces part
    assert all(result.logit > EMPTY_LOGIT for result in results)


@pytest.mark.case(25)
def test_the_option_puts_them_last_in_the_callers_order() -> None:
    results = reranked("last", return_documents=True)
    assert places(results) == [2, 5, 0, *BLANK_AT]
    for result in results[3:]:
        assert (result.relevance_score, result.logit, result.tokens) == (0, EMPTY_LOGIT, 0)
        assert (result.truncated, result.HasField("best_chunk")) == (False, False)
        assert (result.id, result.document.text) == (str(result.index), DOCUMENTS[result.index])
    scored = {result.index: result for result in reranked("scored")}
    assert [result.logit for result in results[:3]] == [scored[index].logit for index in (2, 5, 0)]


@pytest.mark.case(25)
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [2, 5, 0, *BLANK_AT]),
        ({"top_n": 2}, [2, 5]),
        ({"top_n": 4}, [2, 5, 0, 1]),
        ({"top_n": 100}, [2, 5, 0, *BLANK_AT]),
        ({"min_relevance_score": 1e-6}, [2, 5, 0]),
        ({"min_relevance_score": 0}, [2, 5, 0, *BLANK_AT]),
        ({"truncation": pb.TRUNCATION_NONE, "max_chunks_per_document": 4}, [2, 5, 0, *BLANK_AT]),
    ],
)
def test_both_methods_keep_counts_and_bounds(fields: dict[str, Any], expected: list[int]) -> None:
    assert places(reranked("last", **fields)) == expected
    streamed = reranked("last", "StreamRerank", **fields)
    best = sorted(streamed, key=lambda result: (-result.logit, result.index))
    assert places(best)[: fields.get("top_n") or None] == expected


@pytest.fixture(scope="module")
def last() -> Iterator[RerankServer]:
    """A server of the embedded model, which encodes the query apart."""
    with serving(ServerSettings(blank_documents="last")) as server:
        yield server


@pytest.mark.case(25)
@pytest.mark.parametrize("method", ["Rerank", "StreamRerank"])
@pytest.mark.parametrize("model", ["embedded", "scripted"])
def test_all_of_them_blank_is_an_answer_too(last: RerankServer, model: str, method: str) -> None:
    documents, runner = [pb.Document(text=text) for text in ("", " ", "\u200b")], CountingRunner()
    if model == "embedded":
        messages = call(last, method, "q", documents)
    else:
        with serving(ServerSettings(blank_documents="last"), runner=runner) as server:
            messages = call(server, method, "q", documents)
        assert runner.sequences == 0
    results = [result for message in messages for result in message.results]
    assert (places(results), {result.logit for result in results}) == ([0, 1, 2], {EMPTY_LOGIT})
    final = messages[-1] if method == "Rerank" else messages[-1].summary
    assert final.model == "embedded"


@pytest.mark.case(25)
@pytest.mark.parametrize("method", ["Rerank", "StreamRerank"])
@pytest.mark.parametrize("fields", [{}, {"max_chunks_per_document": 4, "max_tokens_per_document": 8}])
def test_the_results_of_the_others_stay_the_same_in_chunks_and_in_streams(
    last: RerankServer, fields: dict[str, Any], method: str
) -> None:
    long = " ".join(f"Bamboo number {number} is eaten." for number in range(40))
    texts = ["", "Pandas eat bamboo.", long, " ", "Pandas eat bamboo.", "", "Paris is in France."]

    def results(server: RerankServer) -> list[pb.RerankResult]:
        request = pb.StreamRerankRequest(
            query="What do pandas eat?", documents=[pb.Document(text=text) for text in texts], **fields
        )
        with stub_of(server.port) as stub:
            if method == "StreamRerank":
                return [
                    result for part in stub.StreamRerank(request, timeout=WAIT) for result in part.results
                ]
            whole = pb.RerankRequest.FromString(request.SerializeToString())
            return list(stub.Rerank(whole, timeout=WAIT).results)

    with serving() as scoring:
        scored = {result.index: result for result in results(scoring)}
    left = results(last)
    assert places(left[-3:]) == [0, 3, 5]
    assert len(left) == len(texts)
    for result in left[:-3]:
        whole = scored[result.index]
        # A batch of another size may change the last bit.
        assert result.logit == pytest.approx(whole.logit, rel=1e-5)
        assert (result.tokens, result.truncated) == (whole.tokens, whole.truncated)
        assert result.best_chunk == whole.best_chunk
    same = {result.index: result.logit for result in left}
    assert same[1] == same[4]


@pytest.mark.case(25)
def test_a_real_models_other_scores_stay_the_same_and_every_dialect_follows(last: RerankServer) -> None:
    texts = ["Bamboo is what pandas eat.", "", "Paris is in France.", " "]
    query = "What do pandas eat?"
    with rest_server(last.port) as port:
        mixed = post(port, "/rerank", {"query": query, "texts": texts}).json
        alone = post(port, "/rerank", {"query": query, "texts": [texts[0], texts[2]]}).json
        passages = [{"text": text} for text in texts]
        nim = post(port, "/v1/ranking", {"query": {"text": query}, "passages": passages}).json["rankings"]
        pairs = post(port, "/bge-reranker-base/post", {"text_pairs": [[query, text] for text in texts]}).json
        plain = post(port, "/v1/rerank", {"query": query, "documents": texts}).json["results"]
        nothing = post(port, "/v1/rerank", {"query": query, "documents": ["", " "]}).json["results"]
    orders = [[each["index"] for each in found] for found in (mixed, nim, plain)]
    assert orders == [[0, 2, 1, 3]] * 3
    assert [each["score"] for each in mixed] == pytest.approx([each["score"] for each in alone] + [0, 0])
    assert pairs["rerank_scores"][1] == pairs["rerank_scores"][3] == nim[-1]["logit"] == EMPTY_LOGIT
    assert [each["relevance_score"] for each in nothing] == [0, 0]
