"""The dialect of a body: fields with a value show it, a prefix forces it, a path is the last resort."""

from collections.abc import Callable
from typing import Any

import pytest

from rerank_grpc.rest.dialects import dialect_of, presumed
from rerank_grpc.rest.forms.decoded import Posted
from rerank_grpc.server.server import RerankServer
from tests.rest.support import call, post, rest_server

DOCUMENTS = {"query": "q", "documents": ["d"]}


@pytest.mark.parametrize(
    ("body", "prefix", "path", "name"),
    [
        (DOCUMENTS, "", "/v1/rerank", "superset"),
        (DOCUMENTS, "", "/predict", "superset"),
        ({}, "", "/predict", "tei-predict"),
        ({"query": "q"}, "", "/v1/ranking", "nim"),
        (DOCUMENTS, "", "/v1/ranking", "superset"),
        ({"text_2": ["d"]}, "", "/score", "vllm-score"),
        ({}, "fastgpt", "/predict", "fastgpt"),
        (DOCUMENTS | {"top_k": 1}, "", "/", "voyage"),
        (DOCUMENTS | {"top_k": None, "batch_size": None}, "", "/", "superset"),
        (DOCUMENTS | {"top_k": 1, "batch_size": 8}, "", "/", "batch"),
        (DOCUMENTS | {"top_k": 1}, "cohere", "/", "superset"),
        (DOCUMENTS | {"passages": []}, "", "/", "nim"),
        (DOCUMENTS | {"passages": None}, "", "/", "superset"),
        (DOCUMENTS | {"texts": None}, "", "/", "superset"),
        (DOCUMENTS | {"texts": ["d"]}, "", "/", "superset"),
        (DOCUMENTS | {"texts": ["d"], "raw_scores": False, "batch_size": 8}, "", "/", "superset"),
        (DOCUMENTS | {"texts": ["d"]}, "tei", "/", "tei"),
        (DOCUMENTS | {"texts": ["d"]}, "cohere", "/", "superset"),
        (DOCUMENTS | {"texts": ["d"]}, "infinity", "/", "infinity"),
        ({"input": {}}, "", "/", "dashscope"),
        ({"input": []}, "", "/", "mixedbread"),
        ({"input": "text"}, "", "/", "superset"),
        ({"input": {}}, "tei", "/", "tei"),
        ({"queries": "q", "documents": ["d"], "top_k": 1}, "", "/", "vllm-score"),
        ({"documents": ["d"], "raw_scores": False}, "", "/", "infinity"),
        ({"raw_scores": False}, "", "/", "superset"),
        ({"inputs": ["q", "d"]}, "", "/", "tei-predict"),
        ({"inputs": [["q", "d"]]}, "", "/predict", "tei-predict"),
        ({"inputs": [{"text": "q", "text_pair": "d"}]}, "", "/predict", "huggingface"),
        ({"inputs": {"query": "q", "passages": ["d"]}}, "", "/", "huggingface"),
        ({"inputs": [["q", "d"]]}, "", "/models/org/name", "huggingface"),
        ({"inputs": [{"text": "q"}]}, "tei", "/", "tei-predict"),
        (DOCUMENTS, "", "/hf-inference/models/org/name", "superset"),
        (DOCUMENTS | {"rank_fields": ["text"], "parameters": {}}, "", "/rerank", "pinecone"),
        (DOCUMENTS | {"rank_fields": ["text"], "parameters": None}, "", "/rerank", "superset"),
        (DOCUMENTS | {"parameters": {}}, "", "/rerank", "superset"),
        (DOCUMENTS | {"rank_fields": ["text"], "parameters": {}}, "cohere", "/rerank", "superset"),
        (DOCUMENTS | {"top_k": 1}, "pinecone", "/rerank", "pinecone"),
        (DOCUMENTS | {"top_k": 1}, "sglang", "/v1/rerank", "sglang"),
        (DOCUMENTS | {"property": ""}, "", "/rerank", "weaviate"),
        (DOCUMENTS | {"property": None}, "", "/rerank", "superset"),
        (DOCUMENTS | {"property": "", "top_k": 1}, "", "/rerank", "weaviate"),
        (DOCUMENTS | {"property": ""}, "cohere", "/rerank", "superset"),
        ({"query": "q", "property": "d"}, "", "/rerank", "weaviate"),
        ({"property": "d"}, "", "/rerank", "superset"),
        ({"queries": ["q"], "documents": ["d"]}, "", "/v1/inference/org/name", "deepinfra"),
        ({"queries": ["q"], "documents": ["d"]}, "vllm", "/v1/inference/org/name", "vllm-score"),
        ({"queries": ["q"], "documents": ["d"]}, "deepinfra", "/score", "deepinfra"),
        ({"query": "q", "texts": ["d"]}, "", "/v1/inference/org/name", "tei"),
        (DOCUMENTS, "", "/api/v1/rerank", "openrouter"),
        (DOCUMENTS, "cohere", "/api/v1/rerank", "superset"),
        (DOCUMENTS, "", "/api/rerank", "ollama"),
        (DOCUMENTS | {"top_k": 1}, "", "/api/rerank", "voyage"),
        (DOCUMENTS, "ollama", "/v1/rerank", "ollama"),
        (DOCUMENTS, "", "/acme/api/rerank", "superset"),
        (DOCUMENTS, "openrouter", "/rerank", "openrouter"),
        (DOCUMENTS, "", "/api/v1/services/rerank/text-rerank/text-rerank", "superset"),
        ({}, "", "/api/v1/services/rerank/text-rerank/text-rerank", "dashscope"),
    ],
)
def test_fields_then_prefix_then_path_tell_the_dialect(
    body: dict[str, Any], prefix: str, path: str, name: str
) -> None:
    assert dialect_of(body, prefix, path).name == name


@pytest.mark.parametrize(
    ("prefix", "path", "name"),
    [
        ("", "/v1/rerank", "superset"),
        ("", "/predict", "tei-predict"),
        ("tei", "/predict", "tei"),
        ("", "/models/org/name", "huggingface"),
        ("", "/v1/inference/org/name", "deepinfra"),
        ("weaviate", "/rerank", "weaviate"),
        ("", "/api/v1/rerank", "openrouter"),
    ],
)
def test_before_the_body_prefix_and_path_tell_the_dialect(prefix: str, path: str, name: str) -> None:
    assert presumed(prefix, path).name == name


@pytest.mark.parametrize(("path", "results"), [("/sglang/v1/rerank", None), ("/pinecone/rerank", "data")])
def test_a_server_may_send_documents_to_those_alone_who_ask(
    scripted: RerankServer, path: str, results: str | None
) -> None:
    with rest_server(scripted.port, documents="asked") as port:
        for asked in (True, False, None):
            reply = call(port, "POST", path, DOCUMENTS | {"return_documents": asked}).json
            (result,) = reply[results] if results else reply
            assert ("document" in result) is bool(asked)


@pytest.mark.parametrize("path", ["/v1/rerank", "/api/v1/rerank", "/sglang/v1/rerank"])
def test_spans_are_refused_in_every_flavour_of_the_common_form(port: int, path: str) -> None:
    for spans in ({}, {"mode": "enabled"}):
        assert "relevant_spans" in post(port, path, DOCUMENTS | {"relevant_spans": spans}).raw.decode()
    assert post(port, path, DOCUMENTS | {"relevant_spans": {"mode": "disabled"}}).status == 200


PINECONE = {"X-Pinecone-Api-Version": "2025-10"}
FORMS: dict[str, tuple[str, dict[str, str], Callable[[str], Any]]] = {
    "huggingface": ("/models/org/name", {}, lambda text: {"error": text}),
    "huggingface's prefix": ("/huggingface", {}, lambda text: {"error": text}),
    "weaviate": ("/weaviate/rerank", {}, lambda text: {"error": text}),
    "deepinfra": ("/inference/org/name", {}, lambda text: {"detail": {"error": text}}),
    "pinecone's header": (
        "/rerank",
        PINECONE,
        lambda text: {"error": {"code": "UNAUTHENTICATED", "message": text}, "status": 401},
    ),
    "a prefix before a header": ("/weaviate/rerank", PINECONE, lambda text: {"error": text}),
    "sglang": (
        "/sglang/v1/rerank",
        {},
        lambda text: {
            "object": "error",
            "message": text,
            "type": "BadRequestError",
            "param": None,
            "code": 401,
        },
    ),
}


@pytest.mark.parametrize("caller", FORMS)
def test_an_error_before_the_body_is_read_has_the_callers_form(scripted: RerankServer, caller: str) -> None:
    path, headers, form = FORMS[caller]
    with rest_server(scripted.port, tokens=("secret",)) as port:
        text = call(port, "POST", "/v1/rerank", {}).json["message"]
        reply = call(port, "POST", path, {}, headers)
        assert (reply.status, reply.json) == (401, form(text))


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/hf-inference/models/org/name", "org/name"),
        ("/models/name", "name"),
        ("/models/org/name/pipeline/sentence-similarity", "org/name"),
        ("/models/org/name/pipeline", "org/name/pipeline"),
        ("/v1/inference/org/name", "org/name"),
        ("/inference/org/name", "org/name"),
        ("/models/service/rerank", ""),
        ("/models/service/v1/reranking", ""),
        ("/v1/models/name", ""),
        ("/models", ""),
        ("/v1/rerank", ""),
    ],
)
def test_a_path_may_name_the_model(path: str, model: str) -> None:
    assert Posted(path).model == model
