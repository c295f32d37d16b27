"""milvus-model, by its newer name pymilvus.model: the functions that rerank through a service."""

import os

import voyageai
from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, TOKEN, URL, main, raises, ranks
from pymilvus.model import reranker

os.environ["CO_API_URL"] = URL
all_of_them = len(DOCUMENTS)


def jina(token=TOKEN, model=MODEL):
    reranker.jinaai.API_URL = f"{URL}/v1/rerank"
    return reranker.JinaRerankFunction(model, token)


def voyage():
    function = reranker.VoyageRerankFunction(MODEL, TOKEN)
    function.client = voyageai.Client(TOKEN, base_url=f"{URL}/v1")
    return function


def tei():
    # The function has no place for a token but the URL.
    return reranker.TEIRerankFunction(URL.replace("://", f"://user:{TOKEN}@"))


def check(function, count=all_of_them):
    results = function(QUERY, DOCUMENTS, top_k=count)
    ranks([(result.index, result.score) for result in results], count)
    assert all(result.text == DOCUMENTS[result.index] for result in results)


main(
    "pymilvus.model",
    {
        "Cohere": lambda: check(reranker.CohereRerankFunction(MODEL, TOKEN)),
        "Jina": lambda: check(jina()),
        "Voyage": lambda: check(voyage()),
        "TEI": lambda: check(tei()),
        "top_n": lambda: check(jina(), 2),
        "error": lambda: raises(RuntimeError, lambda: check(jina(model=NO_MODEL)), NO_MODEL),
        "wrong token": lambda: raises(RuntimeError, lambda: check(jina("wrong")), "token"),
    },
    label="milvus-model",
)
