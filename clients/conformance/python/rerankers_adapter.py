"""AnswerDotAI's rerankers: RerankGrpcReranker, also by Reranker(model_type="rerank-grpc")."""

import asyncio
import copy
import pickle

from adapters import HERE, NOWHERE, TLS, calibrated, errors, example, in_two_loops
from harness import BEST_FIRST, DOCUMENTS, QUERY, SCORES, TARGET, TOKEN, main, raises, ranks
from rerankers import Document, Reranker

from rerank_grpc.client import AsyncClient, Client
from rerank_grpc.integrations.rerankers import MODEL_TYPE, RerankGrpcReranker


def pairs(found):
    return [(DOCUMENTS.index(each.text), each.score) for each in found.results]


def ask(model="", **options):
    with RerankGrpcReranker(model, **options) as ranker:
        return ranker.rank(QUERY, DOCUMENTS)


def metadata():
    given = [Document(text, doc_id=f"d{i}", metadata={"page": i}) for i, text in enumerate(DOCUMENTS)]
    kept = [copy.deepcopy(vars(each)) for each in given]
    ranker = RerankGrpcReranker(**HERE)
    found = ranker.rank(QUERY, given)
    assert [each.doc_id for each in found] == [f"d{index}" for index in BEST_FIRST]
    assert [each.page for each in found] == BEST_FIRST
    assert [each.rank for each in found] == [1, 2, 3, 4]
    assert abs(found.get_score_by_docid("d1") - SCORES[1]) < 1e-6
    found = ranker.rank(QUERY, given, doc_ids=[7, 8, 9, 10], metadata=[{"page": 0}] * 4)
    assert [each.doc_id for each in found] == [7 + index for index in BEST_FIRST]
    assert [vars(each) for each in given] == kept
    assert [each.doc_id for each in ranker.rank(QUERY, DOCUMENTS)] == BEST_FIRST
    raises(ValueError, lambda: ranker.rank(QUERY, DOCUMENTS, doc_ids=[1]), "doc_ids", "1 for 4")
    image = Document(document_type="image", base64="")
    raises(ValueError, lambda: ranker.rank(QUERY, [image]), "docs[0]", "image")


def options():
    ranker = RerankGrpcReranker(**HERE, min_relevance_score=sorted(SCORES)[-2], priority="batch")
    ranks(pairs(ranker.rank(QUERY, DOCUMENTS)), 2)
    assert abs(ranker.score(QUERY, DOCUMENTS[0]) - SCORES[0]) < 1e-6
    ranker = RerankGrpcReranker(**HERE, min_calibrated_score=1.0)
    assert ranker.rank(QUERY, DOCUMENTS).results == []
    assert abs(ranker.score(QUERY, DOCUMENTS[0]) - SCORES[0]) < 1e-6
    raises(TypeError, lambda: RerankGrpcReranker(topn=3), "topn", "min_relevance_score")


def in_loops():
    ranker = RerankGrpcReranker(**HERE)
    in_two_loops(lambda: ranker.rank_async(QUERY, DOCUMENTS), lambda found: ranks(pairs(found)))


def empty():
    nowhere = RerankGrpcReranker(**NOWHERE)
    assert nowhere.rank(QUERY, []).results == asyncio.run(nowhere.rank_async(QUERY, [])).results == []


def by_name():
    ranker = Reranker("rerank-test", model_type=MODEL_TYPE, verbose=0, **HERE)
    ranks(pairs(ranker.rank(QUERY, DOCUMENTS)))
    assert len(ranker.rank(QUERY, DOCUMENTS).top_k(2)) == 2


def pickled():
    ranker = RerankGrpcReranker(**HERE, top_n=2)
    ranker.rank(QUERY, DOCUMENTS)
    for each in (pickle.loads(pickle.dumps(ranker)), copy.deepcopy(ranker)):
        ranks(pairs(each.rank(QUERY, DOCUMENTS)), 2)


def clients():
    with Client(TARGET, token=TOKEN) as client:
        ranker = RerankGrpcReranker(client=client, top_n=2)
        ranks(pairs(ranker.rank(QUERY, DOCUMENTS)), 2)
        ranks(pairs(asyncio.run(ranker.rank_async(QUERY, DOCUMENTS))), 2)
        ranker.close()
        assert client.serving()
        raises(TypeError, lambda: pickle.dumps(ranker), "target=")


async def async_client():
    async with AsyncClient(TARGET, token=TOKEN) as client:
        ranker = RerankGrpcReranker(async_client=client)
        found = await ranker.rank_async(QUERY, DOCUMENTS)
        await ranker.aclose()
        assert await client.serving()
        return found


main(
    "rerankers",
    {
        "reranks": lambda: ranks(pairs(ask(**HERE))),
        "documents": metadata,
        "top_n": lambda: ranks(pairs(ask(**HERE, top_n=2)), 2),
        "options": options,
        "calibrated": calibrated(ask, pairs),
        "async": in_loops,
        "empty": empty,
        "Reranker": by_name,
        "pickled": pickled,
        "client": clients,
        "async client": lambda: ranks(pairs(asyncio.run(async_client()))),
        "TLS": lambda: ranks(pairs(ask(**TLS))),
        **errors(ask),
        "example": example("rerankers"),
    },
    label="rerankers, RerankGrpcReranker",
)
