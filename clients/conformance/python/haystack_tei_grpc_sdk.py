"""Haystack's HuggingFaceTEIRanker over gRPC: tei.v1, found by reflection without a token."""

import asyncio

import grpc
from harness import BEST_FIRST, DOCUMENTS, QUERY, SCORES, TARGET, TOKEN, main, raises, ranks
from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker, TruncationDirection

LONG = [f"{text} {'password ' * 2_000}" for text in DOCUMENTS]


def ranker(token=TOKEN, **fields):
    return HuggingFaceTEIRanker(url=TARGET, token=Secret.from_token(token), use_grpc=True, **fields)


def documents(texts=DOCUMENTS):
    return [Document(content=text) for text in texts]


def pairs(reply):
    return [(DOCUMENTS.index(each.content), each.score) for each in reply["documents"]]


def logits():
    reply = ranker(raw_scores=True).run(QUERY, documents())
    assert [index for index, _ in pairs(reply)] == BEST_FIRST
    assert [score for _, score in pairs(reply)] != [SCORES[index] for index in BEST_FIRST]


def truncated():
    for direction in TruncationDirection:
        assert len(ranker().run(QUERY, documents(LONG), truncation_direction=direction)["documents"]) == 4


async def at_once():
    asked = ranker()
    try:
        return await asked.run_async(QUERY, documents())
    finally:
        await asked.close_async()


main(
    "huggingface-api-haystack",
    {
        "reranks": lambda: ranks(pairs(ranker().run(QUERY, documents()))),
        "async": lambda: ranks(pairs(asyncio.run(at_once()))),
        "top_k": lambda: ranks(pairs(ranker().run(QUERY, documents(), top_k=2)), 2),
        "raw_scores": logits,
        "truncation_direction": truncated,
        "error": lambda: raises(
            grpc.RpcError, lambda: ranker().run(QUERY, documents(LONG)), "INVALID_ARGUMENT", "texts[0]"
        ),
        "wrong token": lambda: raises(
            grpc.RpcError, lambda: ranker("wrong").run(QUERY, documents()), "UNAUTHENTICATED"
        ),
    },
    label="huggingface-api-haystack (gRPC)",
)
