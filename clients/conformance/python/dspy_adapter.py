"""DSPy: RerankGrpcModule and RerankGrpcRetrieve, modules over gRPC."""

import asyncio
import tempfile

import dspy
from adapters import HERE, NOWHERE, TLS, calibrated, errors, example, in_two_loops
from harness import BEST_FIRST, DOCUMENTS, QUERY, SCORES, TARGET, TOKEN, main, raises, ranks

from rerank_grpc.client import AsyncClient, Client
from rerank_grpc.integrations.dspy import RerankGrpcModule, RerankGrpcRetrieve


def pairs(found):
    return list(zip([DOCUMENTS.index(each) for each in found.passages], found.scores, strict=True))


def ask(top_n=None, **options):
    with RerankGrpcModule(**options, k=top_n) as module:
        return module(query=QUERY, passages=DOCUMENTS)


def passages():
    found = ask(**HERE)
    assert found.indices == BEST_FIRST
    given = [{"long_text": text, "page": index} for index, text in enumerate(DOCUMENTS)]
    found = RerankGrpcModule(**HERE)(query=QUERY, passages=given)
    assert [each["page"] for each in found.passages] == BEST_FIRST
    raises(TypeError, lambda: RerankGrpcModule(**HERE)(query=QUERY, passages=[1]), "long_text")


def options():
    module = RerankGrpcModule(**HERE, min_relevance_score=sorted(SCORES)[-2], priority="batch")
    ranks(pairs(module(query=QUERY, passages=DOCUMENTS)), 2)
    ranks(pairs(module(query=QUERY, passages=DOCUMENTS, k=1)), 1)
    raises(TypeError, lambda: RerankGrpcModule(topn=3), "topn", "min_relevance_score")


def in_loops():
    module = RerankGrpcModule(**HERE)
    in_two_loops(lambda: module.acall(query=QUERY, passages=DOCUMENTS), lambda found: ranks(pairs(found)))


def empty():
    nowhere = RerankGrpcModule(**NOWHERE)
    assert nowhere(query=QUERY, passages=[]).passages == []
    assert asyncio.run(nowhere.acall(query=QUERY, passages=[])).passages == []


class Found(dspy.Retrieve):
    def forward(self, query, k=None):
        ids = [f"d{index}" for index in range(len(DOCUMENTS))]
        return dspy.Prediction(passages=list(DOCUMENTS), doc_ids=ids, corpus="test")


class Program(dspy.Module):
    """A program that retrieves; DSPy finds its parts, copies it and saves it."""

    def __init__(self):
        super().__init__()
        self.retrieve = RerankGrpcRetrieve(Found(k=4), RerankGrpcModule(**HERE, k=2))

    def forward(self, question):
        return self.retrieve(question)


def retrieves():
    found = Program()(question=QUERY)
    ranks(pairs(found), 2)
    assert found.doc_ids == [f"d{index}" for index in BEST_FIRST[:2]]
    assert found.corpus == "test"
    plain = RerankGrpcRetrieve(lambda query: DOCUMENTS, RerankGrpcModule(**HERE))
    ranks(pairs(plain(QUERY, k=3)), 3)


async def retrieves_async():
    async with RerankGrpcModule(**HERE) as module:
        return await RerankGrpcRetrieve(Found(k=4), module).acall(QUERY)


def saved():
    program = Program()
    program(question=QUERY)
    ranks(pairs(program.deepcopy()(question=QUERY)), 2)
    with tempfile.TemporaryDirectory() as folder:
        program.save(folder, save_program=True)
        try:
            loaded = dspy.load(folder, allow_pickle=True)
        except TypeError:  # DSPy 3.0 asks for no leave
            loaded = dspy.load(folder)
    ranks(pairs(loaded(question=QUERY)), 2)


def in_threads():
    module = RerankGrpcModule(**HERE)
    inputs = [dspy.Example(query=QUERY, passages=DOCUMENTS).with_inputs("query", "passages")] * 8
    for found in module.batch(inputs, num_threads=4, disable_progress_bar=True):
        ranks(pairs(found))


def clients():
    with Client(TARGET, token=TOKEN) as client:
        module = RerankGrpcModule(client=client, k=2)
        ranks(pairs(module(query=QUERY, passages=DOCUMENTS)), 2)
        ranks(pairs(module.deepcopy()(query=QUERY, passages=DOCUMENTS)), 2)
        ranks(pairs(asyncio.run(module.acall(query=QUERY, passages=DOCUMENTS))), 2)
        module.close()
        assert client.serving()


async def async_client():
    async with AsyncClient(TARGET, token=TOKEN) as client:
        module = RerankGrpcModule(async_client=client)
        found = await module.acall(query=QUERY, passages=DOCUMENTS)
        await module.aclose()
        assert await client.serving()
        return found


main(
    "dspy",
    {
        "reranks": lambda: ranks(pairs(ask(**HERE))),
        "passages": passages,
        "k": lambda: ranks(pairs(ask(**HERE, top_n=2)), 2),
        "options": options,
        "calibrated": calibrated(ask, pairs),
        "async": in_loops,
        "empty": empty,
        "retrieves": retrieves,
        "retrieves, async": lambda: ranks(pairs(asyncio.run(retrieves_async()))),
        "saved": saved,
        "threads": in_threads,
        "client": clients,
        "async client": lambda: ranks(pairs(asyncio.run(async_client()))),
        "TLS": lambda: ranks(pairs(ask(**TLS))),
        **errors(ask),
        "example": example("DSPy"),
    },
    label="DSPy, RerankGrpcModule",
)
