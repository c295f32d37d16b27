"""pinecone: the rerank of its inference."""

from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, TOKEN, URL, main, raises, ranks
from pinecone import Pinecone
from pinecone.errors import ApiError, NotFoundError, UnauthorizedError

client = Pinecone(api_key=TOKEN, host=URL)
wrong = Pinecone(api_key="wrong", host=URL)


def ask(using=client, **fields):
    given = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, **fields}
    return using.inference.rerank(**given)


def documents():
    own = [{"id": str(index), "summary": text} for index, text in enumerate(DOCUMENTS)]
    reply = ask(documents=own, rank_fields=["summary"], parameters={"truncate": "END"})
    ranks([(result.index, result.score) for result in reply.data])
    assert all(result.document == own[result.index] for result in reply.data)
    assert all(result.document["text"] == DOCUMENTS[result.index] for result in ask().data)
    assert all(result.document is None for result in ask(return_documents=False).data)
    assert reply.usage.rerank_units == 1


main(
    "pinecone",
    {
        "reranks": lambda: ranks([(r.index, r.score) for r in ask().data]),
        "documents": documents,
        "top_n": lambda: ranks([(r.index, r.score) for r in ask(top_n=2).data], 2),
        "error": lambda: raises(NotFoundError, lambda: ask(model=NO_MODEL), NO_MODEL, "NOT_FOUND"),
        "bad request": lambda: raises(ApiError, lambda: ask(rank_fields=["none"]), "documents[0]"),
        "wrong token": lambda: raises(UnauthorizedError, lambda: ask(wrong), "token"),
    },
)
