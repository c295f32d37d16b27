"""xinference-client: finds out that a token is wanted, gets the model, reranks."""

from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, TOKEN, URL, main, raises, ranks
from xinference_client import RESTfulClient

client = RESTfulClient(URL, api_key=TOKEN)
model = client.get_model(MODEL)


def pairs(reply):
    return [(result["index"], result["relevance_score"]) for result in reply["results"]]


def documents():
    reply = model.rerank(DOCUMENTS, QUERY, return_documents=True)
    assert all(r["document"]["text"] == DOCUMENTS[r["index"]] for r in reply["results"])


def lengths():
    assert model.rerank(DOCUMENTS, QUERY, return_len=True)["meta"]["tokens"]["input_tokens"] > 0


def listed():
    assert client.list_models()[MODEL]["model_type"] == "rerank"


main(
    "xinference-client",
    {
        "reranks": lambda: ranks(pairs(model.rerank(DOCUMENTS, QUERY))),
        "documents": documents,
        "top_n": lambda: ranks(pairs(model.rerank(DOCUMENTS, QUERY, top_n=2)), 2),
        "token counts": lengths,
        "models": listed,
        "error": lambda: raises(RuntimeError, lambda: model.rerank(DOCUMENTS, ""), "query"),
        "unknown model": lambda: raises(RuntimeError, lambda: client.get_model(NO_MODEL), "no model"),
        "wrong token": lambda: raises(
            RuntimeError, lambda: RESTfulClient(URL, api_key="wrong").get_model(MODEL), "token"
        ),
    },
)
