"""infinity-client: rerank and models."""

from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, TOKEN, URL, main, raises, ranks
from infinity_client import AuthenticatedClient
from infinity_client.api.default import models, rerank
from infinity_client.errors import UnexpectedStatus
from infinity_client.models import RerankInput

client = AuthenticatedClient(base_url=URL, token=TOKEN, raise_on_unexpected_status=True)
wrong = AuthenticatedClient(base_url=URL, token="wrong", raise_on_unexpected_status=True)


def ask(using=client, **fields):
    body = RerankInput(**{"query": QUERY, "documents": DOCUMENTS, "model": MODEL, **fields})
    return rerank.sync(client=using, body=body)


def documents():
    reply = ask(return_documents=True)
    assert all(result.document == DOCUMENTS[result.index] for result in reply.results)


def listed():
    assert MODEL in [model.id for model in models.sync(client=client).data]


main(
    "infinity-client",
    {
        "reranks": lambda: ranks([(r.index, r.relevance_score) for r in ask().results]),
        "documents": documents,
        "top_n": lambda: ranks([(r.index, r.relevance_score) for r in ask(top_n=2).results], 2),
        "models": listed,
        "error": lambda: raises(UnexpectedStatus, lambda: ask(model=NO_MODEL), NO_MODEL),
        "wrong token": lambda: raises(UnexpectedStatus, lambda: ask(wrong), "401"),
    },
)
