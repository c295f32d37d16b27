"""Callers of Hugging Face's Inference API post pairs of texts to a model's path."""

from typing import Any

import pytest

from rerank_grpc.server.server import RerankServer
from tests.rest.support import post, rest_server

QUERY = "what is a panda?"
TEXTS = ("hi there", "the giant panda is a bear", "pandas eat bamboo")
PAIRS = [{"text": QUERY, "text_pair": text} for text in TEXTS]
PATHS = ("/hf-inference/models/BAAI/bge-reranker-base", "/models/BAAI/bge-reranker-base/", "/predict", "/")


def scores(port: int, **options: Any) -> list[float]:
    """Asks in the common form: each text's score, in the texts' order."""
    results = post(port, "/v1/rerank", {"query": QUERY, "documents": TEXTS, **options}).json["results"]
    return [result["relevance_score"] for result in sorted(results, key=lambda result: result["index"])]


@pytest.mark.case(12)
@pytest.mark.parametrize("path", PATHS)
def test_pairs_get_their_labels_and_scores_in_their_order(port: int, path: str) -> None:
    reply = post(port, path, {"inputs": PAIRS})
    assert reply.status == 200
    assert reply.json == [{"label": "LABEL_0", "score": score} for score in scores(port)]


@pytest.mark.case(12)
def test_one_pair_is_a_list_of_one(port: int) -> None:
    reply = post(port, PATHS[0], {"inputs": PAIRS[1], "parameters": None})
    assert reply.json == [{"label": "LABEL_0", "score": scores(port)[1]}]


@pytest.mark.case(12)
def test_the_parameters_of_text_classification_hold(port: int) -> None:
    raw = {"function_to_apply": "none", "top_k": 1}
    reply = post(port, PATHS[0], {"inputs": PAIRS, "parameters": raw}).json
    assert reply == [[{"label": "LABEL_0", "score": score}] for score in scores(port, raw_scores=True)]


@pytest.mark.case(12)
@pytest.mark.parametrize(
    ("inputs", "reply"),
    [
        ({"query": QUERY, "passages": TEXTS}, lambda scores: {"scores": scores}),
        ({"source_sentence": QUERY, "sentences": TEXTS}, lambda scores: scores),
    ],
)
def test_one_query_with_its_texts_gets_bare_scores(port: int, inputs: Any, reply: Any) -> None:
    for path in ("/", "/huggingface", f"{PATHS[0]}/pipeline/sentence-similarity"):
        assert post(port, path, {"inputs": inputs}).json == reply(scores(port))


@pytest.mark.case(12)
@pytest.mark.parametrize(
    "body",
    [
        {"inputs": PAIRS},
        {"inputs": [[QUERY, TEXTS[0]]]},
        {"inputs": {"query": QUERY, "passages": TEXTS}},
        {"query": QUERY, "texts": TEXTS},
        {"query": QUERY, "documents": TEXTS, "model": "embedded"},
    ],
)
def test_the_path_names_the_model_of_any_form(port: int, body: Any) -> None:
    for path in ("/hf-inference/models/no/such-model", "/v1/inference/no/such-model"):
        reply = post(port, path, body)
        assert reply.status == 404
        assert (
            "no model is named 'no/such-model'"
            in reply.json["message" if "message" in reply.json else "error"]
        )
    assert post(port, "/models/no/such-model/rerank", body).status == 200


@pytest.mark.case(12)
def test_errors_are_a_text_under_error_even_before_the_body_is_read(scripted: RerankServer) -> None:
    with rest_server(scripted.port, tokens=("secret",)) as port:
        reply = post(port, PATHS[0], {"inputs": PAIRS})
        assert reply.status == 401
        assert isinstance(reply.json["error"], str)
        assert post(port, PATHS[0], {"inputs": PAIRS}, authorization="Bearer secret").status == 200
