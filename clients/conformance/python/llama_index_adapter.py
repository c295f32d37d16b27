"""LlamaIndex: RerankGrpcPostprocessor, a node postprocessor over gRPC."""

import asyncio
import copy
import pickle

from adapters import HERE, NOWHERE, TLS, calibrated, errors, example, in_two_loops
from harness import BEST_FIRST, DOCUMENTS, QUERY, SCORES, TARGET, TOKEN, main, raises, ranks
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode

from rerank_grpc.client import AsyncClient, Client
from rerank_grpc.integrations.llama_index import RerankGrpcPostprocessor


def nodes():
    return [
        NodeWithScore(
            node=TextNode(
                text=text,
                id_=f"n{index}",
                metadata={"source": f"page {index}"},
                excluded_embed_metadata_keys=["source"],
            ),
            score=0.5,
        )
        for index, text in enumerate(DOCUMENTS)
    ]


def pairs(found):
    return [(DOCUMENTS.index(each.node.text), each.score) for each in found]


def ask(**options):
    with RerankGrpcPostprocessor(**options) as postprocessor:
        return postprocessor.postprocess_nodes(nodes(), query_str=QUERY)


def asked(postprocessor, given=None):
    return postprocessor.apostprocess_nodes(nodes() if given is None else given, query_str=QUERY)


def metadata():
    given = nodes()
    kept = copy.deepcopy(given)
    found = RerankGrpcPostprocessor(**HERE).postprocess_nodes(given, query_str=QUERY)
    assert given == kept
    assert [each.node_id for each in found] == [f"n{index}" for index in BEST_FIRST]
    assert [each.metadata["source"] for each in found] == [f"page {index}" for index in BEST_FIRST]


def embedded_metadata():
    """A node is scored with the metadata that its embedding would have."""
    given = [NodeWithScore(node=TextNode(text="", metadata={"text": DOCUMENTS[1]}))]
    found = RerankGrpcPostprocessor(**HERE).postprocess_nodes(given, query_str=QUERY)
    plain = [NodeWithScore(node=TextNode(text=f"text: {DOCUMENTS[1]}"))]
    expected = RerankGrpcPostprocessor(**HERE).postprocess_nodes(plain, query_str=QUERY)
    assert abs(found[0].score - expected[0].score) < 0.05 < found[0].score, (found, expected)


def empty():
    nowhere = RerankGrpcPostprocessor(**NOWHERE)
    assert nowhere.postprocess_nodes([], query_str=QUERY) == asyncio.run(asked(nowhere, [])) == []
    raises(ValueError, lambda: nowhere.postprocess_nodes(nodes()), "query_str")


def options():
    postprocessor = RerankGrpcPostprocessor(**HERE, min_relevance_score=sorted(SCORES)[-2], priority="batch")
    ranks(pairs(postprocessor.postprocess_nodes(nodes(), query_str=QUERY)), 2)
    postprocessor.top_n = 1
    ranks(pairs(postprocessor.postprocess_nodes(nodes(), query_str=QUERY)), 1)
    raises(ValueError, lambda: RerankGrpcPostprocessor(topn=3), "topn")


def in_loops():
    postprocessor = RerankGrpcPostprocessor(**HERE)
    in_two_loops(lambda: asked(postprocessor), lambda found: ranks(pairs(found)))


def serialized():
    postprocessor = RerankGrpcPostprocessor(**HERE, top_n=2)
    postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    text = postprocessor.to_json()
    assert TOKEN not in f"{postprocessor!r} {text}"
    again = RerankGrpcPostprocessor.from_json(text, token=TOKEN)
    for each in (again, pickle.loads(pickle.dumps(postprocessor)), copy.deepcopy(postprocessor)):
        ranks(pairs(each.postprocess_nodes(nodes(), query_str=QUERY)), 2)


def clients():
    with Client(TARGET, token=TOKEN) as client:
        postprocessor = RerankGrpcPostprocessor(client=client, top_n=2)
        ranks(pairs(postprocessor.postprocess_nodes(nodes(), query_str=QUERY)), 2)
        ranks(pairs(asyncio.run(asked(postprocessor))), 2)
        postprocessor.close()
        assert client.serving()
        raises(TypeError, lambda: pickle.dumps(postprocessor), "target=")


async def async_client():
    async with AsyncClient(TARGET, token=TOKEN) as client:
        postprocessor = RerankGrpcPostprocessor(async_client=client)
        found = await asked(postprocessor)
        await postprocessor.aclose()
        assert await client.serving()
        return found


class Found(BaseRetriever):
    def _retrieve(self, query_bundle):
        return nodes()


def engine():
    """Runs in LlamaIndex's own query engine, whose callbacks hear of the reranking."""
    heard = LlamaDebugHandler(print_trace_on_end=False)
    callbacks = CallbackManager([heard])
    reranker = RerankGrpcPostprocessor(**HERE, top_n=2, callback_manager=callbacks)
    Settings.llm = MockLLM()
    built = RetrieverQueryEngine.from_args(
        Found(),
        response_mode=ResponseMode.NO_TEXT,
        node_postprocessors=[reranker],
        callback_manager=callbacks,
    )
    ranks(pairs(built.query(QUERY).source_nodes), 2)
    ranks(pairs(asyncio.run(built.aquery(QUERY)).source_nodes), 2)
    heard_of = heard.get_event_pairs(CBEventType.RERANKING)
    assert len(heard_of) == 2, heard_of


main(
    "llama-index-core",
    {
        "reranks": lambda: ranks(pairs(ask(**HERE))),
        "documents": metadata,
        "metadata mode": embedded_metadata,
        "top_n": lambda: ranks(pairs(ask(**HERE, top_n=2)), 2),
        "options": options,
        "calibrated": calibrated(ask, pairs),
        "async": in_loops,
        "empty": empty,
        "query engine": engine,
        "serialized": serialized,
        "client": clients,
        "async client": lambda: ranks(pairs(asyncio.run(async_client()))),
        "TLS": lambda: ranks(pairs(ask(**TLS))),
        **errors(ask),
        "example": example("LlamaIndex"),
    },
    label="LlamaIndex, RerankGrpcPostprocessor",
)
