"""The dialect of a body: fields with a value show it, a prefix forces it, a path is the last resort."""

from typing import Any

import pytest

from rerank_grpc.rest.dialects import dialect_of, presumed

DOCUMENTS = {"query": "q", "documents": ["d"]}


@pytest.mark.parametrize(
    ("body", "prefix", "path", "name"),
    [
        (DOCUMENTS, "", "/v1/rerank", "superset"),
        (DOCUMENTS, "", "/predict", "superset"),
        ({}, "", "/predict", "tei-predict"),
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
        (DOCUMENTS, "", "/api/v1/rerank", "openrouter"),
        (DOCUMENTS, "cohere", "/api/v1/rerank", "superset"),
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
        ("", "/api/v1/rerank", "openrouter"),
    ],
)
def test_before_the_body_prefix_and_path_tell_the_dialect(prefix: str, path: str, name: str) -> None:
    assert presumed(prefix, path).name == name
