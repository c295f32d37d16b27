"""mixedbread: its client's rerank."""

from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, TOKEN, URL, main, raises, ranks
from mixedbread import AuthenticationError, BadRequestError, Mixedbread, NotFoundError

client = Mixedbread(api_key=TOKEN, base_url=URL, max_retries=0)
wrong = Mixedbread(api_key="wrong", base_url=URL, max_retries=0)


def ask(using=client, **fields):
    return using.rerank(**{"model": MODEL, "query": QUERY, "input": DOCUMENTS, **fields})


def documents():
    reply = ask(return_input=True)
    assert all(result.input == DOCUMENTS[result.index] for result in reply.data)
    assert all(result.input is None for result in ask().data)


main(
    "mixedbread",
    {
        "reranks": lambda: ranks([(r.index, r.score) for r in ask().data]),
        "documents": documents,
        "top_n": lambda: ranks([(r.index, r.score) for r in ask(top_k=2).data], 2),
        "error": lambda: raises(NotFoundError, lambda: ask(model=NO_MODEL), NO_MODEL),
        "bad request": lambda: raises(BadRequestError, lambda: ask(query=""), "query"),
        "wrong token": lambda: raises(AuthenticationError, lambda: ask(wrong), "token"),
    },
)
