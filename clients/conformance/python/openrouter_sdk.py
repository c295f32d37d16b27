"""openrouter: its SDK's rerank, whose errors need a number as code."""

from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, TOKEN, URL, main, raises, ranks
from openrouter import OpenRouter
from openrouter.errors import BadRequestResponseError, NotFoundResponseError, UnauthorizedResponseError

client = OpenRouter(api_key=TOKEN, server_url=f"{URL}/api/v1")
wrong = OpenRouter(api_key="wrong", server_url=f"{URL}/api/v1")


def ask(using=client, **fields):
    given = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, **fields}
    return using.rerank.rerank(**given, retries=None)


def pairs(reply):
    return [(result.index, result.relevance_score) for result in reply.results]


def documents():
    for sent in (DOCUMENTS, [{"text": text} for text in DOCUMENTS]):
        reply = ask(documents=sent)
        ranks(pairs(reply))
        assert all(result.document.text == DOCUMENTS[result.index] for result in reply.results)
        assert reply.usage.total_tokens > 0


def images():
    raises(
        BadRequestResponseError,
        lambda: ask(documents=["a", {"image": "https://example.com/a.png"}]),
        "images",
    )


main(
    "openrouter",
    {
        "reranks": lambda: ranks(pairs(ask())),
        "documents": documents,
        "top_n": lambda: ranks(pairs(ask(top_n=2)), 2),
        "error": lambda: raises(NotFoundResponseError, lambda: ask(model=NO_MODEL), NO_MODEL),
        "bad request": lambda: raises(BadRequestResponseError, lambda: ask(query=""), "query"),
        "images": images,
        "wrong token": lambda: raises(UnauthorizedResponseError, lambda: ask(wrong), "token"),
    },
)
