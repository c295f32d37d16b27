"""LangChain: RerankGrpcCompressor, a document compressor over gRPC."""

import asyncio
import copy
import pickle

from adapters import HERE, NOWHERE, TLS, calibrated, errors, example, in_two_loops
from harness import BEST_FIRST, DOCUMENTS, QUERY, SCORES, TARGET, TOKEN, main, raises, ranks
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from rerank_grpc.client import AsyncClient, Client
from rerank_grpc.integrations.langchain import RerankGrpcCompressor


def documents():
    metadata = [{"source": f"page {index}", "tags": ["a"]} for index in range(len(DOCUMENTS))]
    return [Document(text, id=f"d{i}", metadata=metadata[i]) for i, text in enumerate(DOCUMENTS)]


def pairs(found):
    return [(DOCUMENTS.index(each.page_content), each.metadata["relevance_score"]) for each in found]


def ask(**options):
    with RerankGrpcCompressor(**options) as compressor:
        return compressor.compress_documents(documents(), QUERY)


def asked(compressor, given=None):
    return compressor.acompress_documents(documents() if given is None else given, QUERY)


def metadata():
    given = documents()
    kept = copy.deepcopy(given)
    found = RerankGrpcCompressor(**HERE).compress_documents(given, QUERY)
    assert given == kept
    assert [each.id for each in found] == [f"d{index}" for index in BEST_FIRST]
    assert [each.metadata["source"] for each in found] == [f"page {index}" for index in BEST_FIRST]
    probabilities = [each.metadata["calibrated_score"] for each in found]
    assert probabilities == sorted(probabilities, reverse=True), probabilities
    assert not any("calibrated_score" in each.metadata for each in ask(**TLS)), (
        "that server has no calibration"
    )


def in_loops():
    compressor = RerankGrpcCompressor(**HERE)
    in_two_loops(lambda: asked(compressor), lambda found: ranks(pairs(found)))


def empty():
    nowhere = RerankGrpcCompressor(**NOWHERE)
    assert nowhere.compress_documents([], QUERY) == asyncio.run(asked(nowhere, [])) == []


def options():
    compressor = RerankGrpcCompressor(**HERE, min_relevance_score=sorted(SCORES)[-2], priority="batch")
    ranks(pairs(compressor.compress_documents(documents(), QUERY)), 2)
    compressor.top_n = 1
    ranks(pairs(compressor.compress_documents(documents(), QUERY)), 1)
    raises(ValueError, lambda: RerankGrpcCompressor(topn=3), "topn")


def pickled():
    compressor = RerankGrpcCompressor(**HERE, top_n=2)
    compressor.compress_documents(documents(), QUERY)
    for each in (pickle.loads(pickle.dumps(compressor)), copy.deepcopy(compressor)):
        ranks(pairs(each.compress_documents(documents(), QUERY)), 2)
    assert TOKEN not in f"{compressor!r} {compressor.model_dump()}"


def clients():
    with Client(TARGET, token=TOKEN) as client:
        compressor = RerankGrpcCompressor(client=client, top_n=2)
        ranks(pairs(compressor.compress_documents(documents(), QUERY)), 2)
        ranks(pairs(asyncio.run(asked(compressor))), 2)
        compressor.close()
        assert client.serving()
        raises(TypeError, lambda: pickle.dumps(compressor), "target=")
        raises(ValueError, lambda: RerankGrpcCompressor(client=client, target=TARGET), "target", "client")


async def async_client():
    async with AsyncClient(TARGET, token=TOKEN) as client:
        compressor = RerankGrpcCompressor(async_client=client)
        found = await compressor.acompress_documents(documents(), QUERY)
        await compressor.aclose()
        assert await client.serving()
        raises(TypeError, lambda: compressor.compress_documents(documents(), QUERY), "client")
        return found


async def chain():
    async with RerankGrpcCompressor(**HERE, top_n=2) as compressor:
        retrieve = RunnableLambda(lambda query: {"query": query, "documents": documents()})
        rerank = RunnableLambda(
            lambda given: compressor.compress_documents(**given),
            afunc=lambda given: compressor.acompress_documents(**given),
        )
        program = retrieve | rerank
        ranks(pairs(program.invoke(QUERY)), 2)
        return await program.ainvoke(QUERY)


main(
    "langchain-core",
    {
        "reranks": lambda: ranks(pairs(ask(**HERE))),
        "documents": metadata,
        "top_n": lambda: ranks(pairs(ask(**HERE, top_n=2)), 2),
        "options": options,
        "calibrated": calibrated(ask, pairs),
        "async": in_loops,
        "empty": empty,
        "chain": lambda: ranks(pairs(asyncio.run(chain())), 2),
        "pickled": pickled,
        "client": clients,
        "async client": lambda: ranks(pairs(asyncio.run(async_client()))),
        "TLS": lambda: ranks(pairs(ask(**TLS))),
        **errors(ask),
        "example": example("LangChain"),
    },
    label="LangChain, RerankGrpcCompressor",
)
