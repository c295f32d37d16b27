"""langchain-cohere: CohereRerank, which asks through ClientV2."""

from cohere.errors import NotFoundError, UnauthorizedError
from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, TOKEN, URL, main, raises, ranks
from langchain_cohere import CohereRerank
from langchain_core.documents import Document


def ranker(token=TOKEN, model=MODEL, top_n=None):
    return CohereRerank(cohere_api_key=token, base_url=URL, model=model, top_n=top_n)


def pairs(results):
    return [(result["index"], result["relevance_score"]) for result in results]


def documents():
    found = ranker(top_n=2).compress_documents([Document(text) for text in DOCUMENTS], QUERY)
    ranks([(DOCUMENTS.index(d.page_content), d.metadata["relevance_score"]) for d in found], 2)


main(
    "langchain-cohere",
    {
        "reranks": lambda: ranks(pairs(ranker().rerank(DOCUMENTS, QUERY))),
        "documents": documents,
        "top_n": lambda: ranks(pairs(ranker().rerank(DOCUMENTS, QUERY, top_n=2)), 2),
        "error": lambda: raises(
            NotFoundError, lambda: ranker(model=NO_MODEL).rerank(DOCUMENTS, QUERY), NO_MODEL
        ),
        "wrong token": lambda: raises(
            UnauthorizedError, lambda: ranker(token="wrong").rerank(DOCUMENTS, QUERY), "token"
        ),
    },
)
