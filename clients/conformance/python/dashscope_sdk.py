"""dashscope: TextReRank. It raises nothing: an error is a reply with status, code and message."""

import dashscope
from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, TOKEN, URL, main, ranks

dashscope.base_http_api_url = f"{URL}/api/v1"


def ask(token=TOKEN, **fields):
    given = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS, "api_key": token, **fields}
    return dashscope.TextReRank.call(**given)


def pairs(reply):
    assert reply.status_code == 200, reply
    assert reply.usage.total_tokens > 0
    return [(result.index, result.relevance_score) for result in reply.output.results]


def documents():
    reply = ask(return_documents=True)
    # By key: as an attribute, the class's default hides it.
    assert all(r["document"]["text"] == DOCUMENTS[r.index] for r in reply.output.results)


def refuses(reply, status, code, word):
    assert (reply.status_code, reply.code) == (status, code), reply
    assert word in reply.message


main(
    "dashscope",
    {
        "reranks": lambda: ranks(pairs(ask(instruct="any"))),
        "documents": documents,
        "top_n": lambda: ranks(pairs(ask(top_n=2)), 2),
        "error": lambda: refuses(ask(model=NO_MODEL), 404, "unknown_model", NO_MODEL),
        "wrong token": lambda: refuses(ask(token="wrong"), 401, "unauthenticated", "token"),
    },
)
