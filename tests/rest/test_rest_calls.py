"""What a rerank call over REST means: scores, counts, documents, options, deadlines, traces."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rerank_grpc.client import Client
from rerank_grpc.server.server import RerankServer
from tests.rest.support import get, post, rest_server

QUERY = "How do I reset my password?"
DOCUMENTS = ["Our office is closed.", "Open Settings and click Forgot password.", "密码至少十二个字符。"]


@pytest.fixture(scope="module")
def real(embedded: RerankServer):
    with rest_server(embedded.port) as port:
        yield port


def scores(results: list[dict[str, Any]], name: str = "relevance_score") -> dict[int, float]:
    return {result["index"]: result[name] for result in results}


def test_both_protocols_give_the_same_scores(embedded: RerankServer, real: int) -> None:
    with Client(f"127.0.0.1:{embedded.port}") as client:
        expected = {r.index: r for r in client.rerank(QUERY, DOCUMENTS).results}
    over_rest = scores(post(real, "/v1/rerank", {"query": QUERY, "documents": DOCUMENTS}).json["results"])
    assert over_rest == {index: result.relevance_score for index, result in expected.items()}
    raw = post(real, "/rerank", {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True}).json
    assert scores(raw, "score") == {index: result.logit for index, result in expected.items()}


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_results_descend_and_both_lists_agree(real: int, path: str) -> None:
    reply = post(real, path, {"query": QUERY, "documents": DOCUMENTS}).json
    found = [result["relevance_score"] for result in reply["results"]]
    assert found == sorted(found, reverse=True)
    assert scores(reply["results"]) == scores(reply["data"], "score")
    assert reply["usage"]["total_tokens"] > 0
    assert [r["document"]["text"] for r in reply["results"]] == [r["document"] for r in reply["data"]]


def test_ties_keep_the_callers_order(real: int) -> None:
    reply = post(real, "/v1/rerank", {"query": QUERY, "documents": ["same", "other text", "same"]}).json
    places = [result["index"] for result in reply["results"]]
    assert places.index(0) < places.index(2)


@pytest.mark.parametrize(("top_n", "count"), [(None, 3), (0, 3), (1, 1), (2.0, 2), (99, 3), (1e30, 3)])
def test_top_n_cuts_and_never_adds(port: int, top_n: Any, count: int) -> None:
    for body in (
        {"query": "q", "documents": DOCUMENTS, "top_n": top_n},
        {"query": "q", "documents": DOCUMENTS, "top_k": top_n},
    ):
        assert len(post(port, "/v1/rerank", body).json["results"]) == count
    assert len(post(port, "/rerank", {"query": "q", "texts": DOCUMENTS, "top_n": top_n}).json) == count


def test_the_batch_form_counts_what_was_scored_and_not_what_came_back(port: int) -> None:
    reply = post(port, "/rerank", {"query": "q", "documents": DOCUMENTS, "batch_size": 8, "top_n": 1}).json
    assert (reply["documents_processed"], len(reply["results"])) == (3, 1)


def test_documents_come_back_only_when_asked_for(port: int) -> None:
    body = {"query": "q", "documents": [{"text": "a"}, "b"]}
    for wanted in (True, "true", "True"):
        reply = post(port, "/v1/rerank", body | {"return_documents": wanted}).json
        assert {result["document"]["text"] for result in reply["results"]} == {"a", "b"}
    reply = post(port, "/v1/rerank", body | {"return_documents": "false"}).json
    assert all("document" not in result for result in reply["results"] + reply["data"])


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        ("/v1/rerank", {}, "list"),
        ("/rerank", {}, "rerank"),
        ("/v1/rerank", {"raw_scores": False}, "rerank"),
        ("/rerank", {"top_k": 1}, "list"),
        ("/rerank", {"truncation": True}, "list"),
        ("/infinity/v1/rerank", {}, "rerank"),
        ("/voyage/rerank", {}, "list"),
    ],
)
def test_the_literal_that_a_client_checks_is_right(port: int, path: str, fields: Any, expected: str) -> None:
    body = {"query": "q", "documents": ["d"], **fields}
    assert post(port, path, body).json["object"] == expected


def test_an_instruction_to_a_model_that_takes_none_is_ignored(real: int) -> None:
    plain = post(real, "/v1/rerank", {"query": QUERY, "documents": DOCUMENTS}).json
    for given in ({"instruction": "x"}, {"instruct": "x"}, {"kwargs": '{"instruction": "x"}'}):
        reply = post(real, "/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, **given}).json
        assert reply["results"] == plain["results"]


@pytest.mark.parametrize(
    "body",
    [
        {"query": QUERY, "documents": ["word " * 2000], "truncation": False},
        {"query": QUERY, "texts": ["word " * 2000], "truncate": False},
        {"query": {"text": QUERY}, "passages": [{"text": "word " * 2000}], "truncate": "NONE"},
    ],
)
def test_a_text_that_may_not_be_cut_is_refused(real: int, body: Any) -> None:
    assert post(real, "/v1/rerank", body).status in (400, 422)


def test_chunks_and_token_limits_reach_the_model(real: int) -> None:
    document = "word " * 400 + "To reset the password open Settings."

    def score(**fields: Any) -> float:
        body = {"query": QUERY, "documents": [document], **fields}
        found: float = post(real, "/v1/rerank", body).json["results"][0]["relevance_score"]
        return found

    assert score(max_chunks_per_doc=8) > score() + 0.05
    assert score(max_tokens_per_doc=3) == score(truncate_prompt_tokens=3) != score()


def test_ids_and_traces_pass_through(port: int) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    reply = post(
        port, "/v1/rerank", {"query": "q", "documents": ["d"]}, x_request_id="abc", traceparent=trace
    )
    assert (reply.headers["x-request-id"], reply.headers["traceparent"]) == ("abc", trace)
    assert reply.json["id"] == "abc"
    reply = get(port, "/v1/models", x_request_id="no id at all", traceparent="nonsense")
    assert len(reply.headers["x-request-id"]) == 32
    assert "traceparent" not in reply.headers


def test_no_content_type_is_needed(port: int) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        reply = post(port, "/v1/rerank", {"query": "q", "documents": ["d"]}, content_type=kind)
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")


def test_32_callers_and_1000_requests_see_no_error(scripted: RerankServer, port: int) -> None:
    with Client(f"127.0.0.1:{scripted.port}") as client:
        documents = [f"document number {number}" for number in range(16)]
        expected = {
            query: {r.index: r.relevance_score for r in client.rerank(query, documents).results}
            for query in (f"query {number}" for number in range(50))
        }

    def ask(number: int) -> bool:
        query = f"query {number % 50}"
        reply = post(port, "/v1/rerank", {"query": query, "documents": documents})
        return reply.status == 200 and scores(reply.json["results"]) == expected[query]

    with ThreadPoolExecutor(32) as callers:
        assert all(callers.map(ask, range(1000)))
