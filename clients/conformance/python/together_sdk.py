"""together: its client's rerank."""

from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, TOKEN, URL, main, raises, ranks
from together import AuthenticationError, BadRequestError, NotFoundError, Together

client = Together(api_key=TOKEN, base_url=f"{URL}/v1", max_retries=0)
wrong = Together(api_key="wrong", base_url=f"{URL}/v1", max_retries=0)


def ask(using=client, **fields):
    return using.rerank.create(**{"model": MODEL, "query": QUERY, "documents": DOCUMENTS, **fields})


def documents():
    reply = ask(return_documents=True)
    assert all(result.document.text == DOCUMENTS[result.index] for result in reply.results)
    assert reply.usage.total_tokens > 0


main(
    "together",
    {
        "reranks": lambda: ranks([(r.index, r.relevance_score) for r in ask().results]),
        "documents": documents,
        "top_n": lambda: ranks([(r.index, r.relevance_score) for r in ask(top_n=2).results], 2),
        "error": lambda: raises(NotFoundError, lambda: ask(model=NO_MODEL), NO_MODEL),
        "bad request": lambda: raises(BadRequestError, lambda: ask(query=""), "query"),
        "wrong token": lambda: raises(AuthenticationError, lambda: ask(wrong), "token"),
    },
)
