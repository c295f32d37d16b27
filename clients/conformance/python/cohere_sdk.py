"""cohere: Client and ClientV2; runs with 5.6.2 and with the newest."""

import inspect

import cohere
from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, TOKEN, URL, main, raises, ranks

try:
    from cohere.errors import NotFoundError, UnauthorizedError
except ImportError:
    from cohere import NotFoundError, UnauthorizedError


def checks(client, wrong):
    def rerank(**fields):
        return client.rerank(**{"model": MODEL, "query": QUERY, "documents": DOCUMENTS, **fields})

    def documents():
        try:
            reply = rerank(return_documents=True)
        except TypeError:
            # ClientV2 has no word for them, and gets them all the same, as objects it does not know.
            assert [result.document["text"] for result in rerank().results]
            return
        for result in reply.results:
            assert result.document.text == DOCUMENTS[result.index]

    def top_n():
        ranks([(r.index, r.relevance_score) for r in rerank(top_n=2).results], 2)

    def spans():
        ranks([(r.index, r.relevance_score) for r in ask_spans("disabled", priority=1).results])
        raises(cohere.errors.BadRequestError, lambda: ask_spans("enabled"), "relevant_spans")

    def ask_spans(mode, **fields):
        wanted = cohere.RerankRelevantSpans(mode=mode, threshold=0.1, max_spans=3)
        return rerank(relevant_spans=wanted, max_tokens_per_doc=4096, **fields)

    has_spans = "relevant_spans" in inspect.signature(client.rerank).parameters
    return {
        "reranks": lambda: ranks([(r.index, r.relevance_score) for r in rerank().results]),
        "documents": documents,
        "top_n": top_n,
        "error": lambda: raises(NotFoundError, lambda: rerank(model=NO_MODEL), NO_MODEL),
        **({"spans": spans} if has_spans else {}),
        "wrong token": lambda: raises(
            UnauthorizedError, lambda: wrong.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS), "token"
        ),
    }


for name in ("Client", "ClientV2"):
    kind = getattr(cohere, name, None)
    if kind is None:
        continue
    try:
        made = [kind(api_key=token, base_url=URL) for token in (TOKEN, "wrong")]
    except TypeError:
        made = [kind(token, base_url=URL) for token in (TOKEN, "wrong")]
    main("cohere", checks(*made), label=f"cohere {name}")
