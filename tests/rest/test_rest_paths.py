"""The paths that rerank calls are posted to: every one that ends in a word for reranking."""

import time

import pytest

from tests.rest.support import call, get, post

BODY = {"query": "q", "documents": ["one", "two"]}

RERANK = (
    "/rerank",
    "/v1/rerank",
    "/v1/v2/rerank",
    "/api/rerank",
    "/api/v1/rerank",
    "/acme/x/y/v1/rerank",
    "/v1/retrieval/a/model/reranking",
    "/compatible-mode/v1/reranks",
    "/openai/deployments/name/reranks",
    "/health/rerank",
    "/v1/models/rerank",
    "/rerank/rerank",
    "/cohere/api/v1/rerank",
    "/tei/rerank",
    "/api/v1/rerank/",
    "//api//v1//rerank//",
    "/api%2Fv1/%72erank",
    "/%E2%82%AC/rerank",
    "/api/v1/rerank?model=x",
)
OTHERS = (
    "/v1/rerankers",
    "/v1/xrerank",
    "/v1/rerank/x",
    "/v1/Rerank",
    "/v1/rerank.json",
    "/v1/rerank%00",
    "/a%0A/rerank%0A",
    "/infinity/tei/v3",
)


@pytest.mark.parametrize("path", RERANK)
def test_a_call_may_be_posted_to_every_path_that_ends_so(port: int, path: str) -> None:
    reply = post(port, path, {"query": "q", "texts": ["one"]} if path.startswith("/tei") else BODY)
    assert reply.status == 200
    assert "relevance_score" in reply.raw.decode() or path.startswith("/tei")
    for method in ("PUT", "DELETE", "OPTIONS"):
        refused = call(port, method, path)
        assert refused.status == 405
        assert "POST" in refused.headers["allow"]


def test_such_a_path_takes_no_other_method(port: int) -> None:
    for path in ("/rerank", "/api/v1/rerank/", "/a/b/reranks", "/tei/reranking"):
        reply = get(port, path)
        assert (reply.status, reply.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", OTHERS)
def test_a_path_that_ends_otherwise_is_unknown(port: int, path: str) -> None:
    assert post(port, path, BODY).status == 404


@pytest.mark.parametrize("path", ["/v1/inference/", "/inference", "/hf-inference/models"])
def test_a_path_without_its_model_leads_nowhere_else(port: int, path: str) -> None:
    reply = post(port, path, BODY, host="elsewhere.example")
    assert (reply.status, "location" in reply.headers) == (404, False)


def test_no_path_that_tells_something_is_hidden(port: int) -> None:
    unknown = get(port, "/v1/models/acme/rerank")
    assert (unknown.status, unknown.json["error"]["code"]) == (404, "unknown_model")
    assert call(port, "DELETE", "/v1/models/acme/rerank").headers["allow"] == "GET, HEAD, POST"
    for path in ("/", "/health", "/v1/models", "/docs", "/openapi.json"):
        assert get(port, path).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/rerank" * 4_000,
        "/" * 30_000 + "rerank",
        "/rerank" + "/" * 30_000 + "x",
        "/%2Frerank" * 3_000,
        "/a" * 15_000,
    ],
)
def test_a_long_path_costs_nothing(port: int, path: str) -> None:
    costs = []
    for _ in range(2):  # a full collection of Python's may come between, and take a second
        begin = time.process_time()
        assert post(port, path, BODY).status == (200 if path.endswith("rerank") else 404)
        costs.append(time.process_time() - begin)
    assert min(costs) < 1
