"""voyageai: its Client."""

import voyageai
from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, TOKEN, URL, main, raises, ranks
from voyageai.error import AuthenticationError, InvalidRequestError, VoyageError

client = voyageai.Client(api_key=TOKEN, base_url=f"{URL}/v1", max_retries=0)
wrong = voyageai.Client(api_key="wrong", base_url=f"{URL}/v1", max_retries=0)


def rerank(**fields):
    return client.rerank(**{"query": QUERY, "documents": DOCUMENTS, "model": MODEL, **fields})


def documents():
    reply = rerank()
    assert reply.total_tokens > 0
    assert all(result.document == DOCUMENTS[result.index] for result in reply.results)


main(
    "voyageai",
    {
        "reranks": lambda: ranks([(r.index, r.relevance_score) for r in rerank().results]),
        "documents": documents,
        "top_n": lambda: ranks([(r.index, r.relevance_score) for r in rerank(top_k=2).results], 2),
        "error": lambda: raises(InvalidRequestError, lambda: rerank(query=""), "query"),
        "unknown model": lambda: raises(VoyageError, lambda: rerank(model=NO_MODEL), NO_MODEL),
        "wrong token": lambda: raises(
            AuthenticationError, lambda: wrong.rerank(QUERY, DOCUMENTS, model=MODEL), "token"
        ),
    },
)
