"""llama-index-postprocessor-tei-rerank: TEI's form, the token sent raw.

It looks at no status: an error's body is not as long as the list of nodes,
and the AssertionError that follows is all that it has for one.
"""

from harness import DOCUMENTS, QUERY, TOKEN, URL, main, raises, ranks
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference


def ask(top_n=None, token=TOKEN, query=QUERY):
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS]
    ranker = TextEmbeddingInference(base_url=URL, top_n=top_n or len(DOCUMENTS), auth_token=token)
    return ranker.postprocess_nodes(nodes, query_str=query)


def pairs(nodes):
    return [(DOCUMENTS.index(node.text), node.score) for node in nodes]


main(
    "llama-index-postprocessor-tei-rerank",
    {
        "reranks": lambda: ranks(pairs(ask())),
        "documents": lambda: ranks(pairs(ask())),
        "top_n": lambda: ranks(pairs(ask(top_n=2)), 2),
        "error": lambda: raises(AssertionError, lambda: ask(query="x" * 100_001)),
        "wrong token": lambda: raises(AssertionError, lambda: ask(token="wrong")),
    },
)
