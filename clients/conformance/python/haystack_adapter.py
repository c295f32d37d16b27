"""Haystack: RerankGrpcRanker, a component over gRPC, in pipelines of its own."""

import asyncio
import copy
import inspect
import os

import haystack
from adapters import HERE, NOWHERE, TLS, calibrated, errors, example, in_two_loops
from harness import BEST_FIRST, DOCUMENTS, QUERY, SCORES, TARGET, TOKEN, main, raises, ranks
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.core.errors import SerializationError
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret

from rerank_grpc.client import AsyncClient, Client
from rerank_grpc.integrations.haystack import RerankGrpcRanker

os.environ["RERANK_TOKEN"] = TOKEN
MODULE = "rerank_grpc.integrations.haystack"  # which Haystack 3 loads only where its caller trusts it
FROM_ENVIRONMENT = {"target": TARGET, "token": Secret.from_env_var("RERANK_TOKEN")}


def documents():
    return [
        Document(id=f"d{index}", content=text, meta={"source": f"page {index}"})
        for index, text in enumerate(DOCUMENTS)
    ]


def pairs(found):
    return [(DOCUMENTS.index(each.content), each.score) for each in found["documents"]]


def ranker(token=None, **options):
    return RerankGrpcRanker(token=Secret.from_token(token) if token else None, **options)


def ask(top_n=None, **options):
    asked = ranker(**options, top_k=top_n)
    try:
        return asked.run(query=QUERY, documents=documents())
    finally:
        asked.close()


def metadata():
    given = documents()
    kept = copy.deepcopy(given)
    found = ranker(**HERE).run(QUERY, given)["documents"]
    assert given == kept
    assert [each.id for each in found] == [f"d{index}" for index in BEST_FIRST]
    assert [each.meta["source"] for each in found] == [f"page {index}" for index in BEST_FIRST]


def embedded_meta():
    (found,) = ranker(**HERE, meta_fields_to_embed=["text", "absent"]).run(
        QUERY, [Document(content=None, meta={"text": DOCUMENTS[1]})]
    )["documents"]
    assert abs(found.score - SCORES[1]) < 0.05, found


def options():
    asked = ranker(**HERE, min_relevance_score=sorted(SCORES)[-2], priority="batch")
    ranks(pairs(asked.run(QUERY, documents())), 2)
    ranks(pairs(asked.run(QUERY, documents(), top_k=1)), 1)
    raises(ValueError, lambda: asked.run(QUERY, documents(), top_k=0), "top_k")
    raises(ValueError, lambda: ranker(top_k=0), "top_k")
    raises(TypeError, lambda: ranker(topk=3), "topk", "min_relevance_score")


def in_loops():
    asked = ranker(**HERE)
    in_two_loops(lambda: asked.run_async(QUERY, documents()), lambda found: ranks(pairs(found)))


def empty():
    nowhere = ranker(**NOWHERE)
    assert nowhere.run(QUERY, []) == asyncio.run(nowhere.run_async(QUERY, [])) == {"documents": []}


def clients():
    with Client(TARGET, token=TOKEN) as client:
        asked = RerankGrpcRanker(client=client, top_k=2)
        ranks(pairs(asked.run(QUERY, documents())), 2)
        ranks(pairs(asyncio.run(asked.run_async(QUERY, documents()))), 2)
        asked.close()
        assert client.serving()
        raises(SerializationError, asked.to_dict, "target=")
        raises(ValueError, lambda: ranker(token="t", client=client), "token")


async def async_client():
    async with AsyncClient(TARGET, token=TOKEN) as client:
        asked = RerankGrpcRanker(async_client=client)
        found = await asked.run_async(QUERY, documents())
        await asked.close_async()
        assert await client.serving()
        return found


def built(kind=Pipeline):
    """Makes a pipeline that retrieves by BM25 and reranks; it is dumped to YAML and loaded again."""
    made = kind()
    made.add_component("retriever", InMemoryBM25Retriever(InMemoryDocumentStore()))
    made.add_component(
        "ranker", RerankGrpcRanker(**FROM_ENVIRONMENT, top_k=2, truncation="start", timeout=20)
    )
    made.connect("retriever.documents", "ranker.documents")
    trust = {"allowed_modules": [MODULE]} if "allowed_modules" in _parameters(kind.loads) else {}
    loaded = kind.loads(made.dumps(), **trust)
    loaded.get_component("retriever").document_store.write_documents(documents())
    assert TOKEN not in made.dumps()
    assert loaded.get_component("ranker").to_dict() == made.get_component("ranker").to_dict()
    return loaded


def _parameters(function):
    return inspect.signature(function).parameters


INPUTS = {"retriever": {"query": " ".join(DOCUMENTS)}, "ranker": {"query": QUERY}}


def pipeline():
    made = built()
    ranks(pairs(made.run(INPUTS)["ranker"]), 2)
    made.get_component("ranker").close()
    ranks(pairs(made.run(INPUTS)["ranker"]), 2)


def async_pipeline():
    """Runs a pipeline asynchronously: an AsyncPipeline in Haystack 2, any in Haystack 3."""
    kind = getattr(haystack, "AsyncPipeline", Pipeline)

    async def ask():
        made = built(kind)
        found = await made.run_async(INPUTS)
        await made.get_component("ranker").close_async()
        return found["ranker"]

    ranks(pairs(asyncio.run(ask())), 2)


def no_variable():
    asked = RerankGrpcRanker(TARGET, token=Secret.from_env_var("NO_SUCH_TOKEN"))
    raises(ValueError, asked.warm_up, "NO_SUCH_TOKEN")
    asked.close()  # as a pipeline does that could not begin
    asyncio.run(asked.close_async())


main(
    "haystack-ai",
    {
        "reranks": lambda: ranks(pairs(ask(**HERE))),
        "documents": metadata,
        "meta_fields_to_embed": embedded_meta,
        "top_k": lambda: ranks(pairs(ask(**HERE, top_n=2)), 2),
        "options": options,
        "calibrated": calibrated(ask, pairs),
        "async": in_loops,
        "empty": empty,
        "pipeline": pipeline,
        "async pipeline": async_pipeline,
        "no token": no_variable,
        "client": clients,
        "async client": lambda: ranks(pairs(asyncio.run(async_client()))),
        "TLS": lambda: ranks(pairs(ask(**TLS))),
        **errors(ask),
        "example": example("Haystack"),
    },
    label="Haystack, RerankGrpcRanker",
)
