"""Modules for DSPy: one that reranks passages, and one that retrieves and reranks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Unpack

import dspy

from rerank_grpc.client import AsyncClient, Client
from rerank_grpc.integrations.connection import (
    AdapterOptions,
    CallArguments,
    ClosesClients,
    Connection,
    Scored,
    split,
)

# A text, or what DSPy's older retrievers return: an object with its text as long_text.
Passage = Any


class RerankGrpcModule(ClosesClients, dspy.Module):
    """Reranks passages; a DSPy program calls it between its retriever and its predictor.

        RerankGrpcModule(target="localhost:50051", k=3)(query="query", passages=passages).passages

    A failed call raises a RerankError; see rerank_grpc.client.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        client: Client | None = None,
        async_client: AsyncClient | None = None,
        model: str | None = None,
        k: int | None = None,
        **options: Unpack[AdapterOptions],
    ) -> None:
        """Makes a module; a `k` of None is all passages.

        `options` are those of Client and of Client.rerank. Raises ValueError for an address beside a client.
        """
        super().__init__()
        of_client, of_call = split(options)
        self.k = k
        self._call: CallArguments = {**of_call, "model": model, "top_n": k}
        self._connection = Connection(target, client, async_client, **of_client)

    def forward(self, query: str, passages: Sequence[Passage], k: int | None = None) -> dspy.Prediction:
        """Returns a prediction, best first: `passages`, their `scores`, and their `indices` in the list."""
        results = self._connection.rerank(query, _texts(passages), **self._arguments(k))
        return _ranked(passages, results)

    async def aforward(
        self, query: str, passages: Sequence[Passage], k: int | None = None
    ) -> dspy.Prediction:
        """Does the same without a thread."""
        results = await self._connection.arerank(query, _texts(passages), **self._arguments(k))
        return _ranked(passages, results)

    def _arguments(self, k: int | None) -> CallArguments:
        return {**self._call, "top_n": self.k if k is None else k}


class RerankGrpcRetrieve(dspy.Module):
    """Retrieves by a retriever of the caller's, then returns the best `k` of what it found.

        RerankGrpcRetrieve(dspy.Retrieve(k=50), RerankGrpcModule(target="localhost:50051", k=3))("query")

    The lists of the retriever's prediction that are as long as its passages keep their order with them, such
    as `indices` and `doc_ids`; `scores` become the relevance. `close` the reranker, where it made a client.
    """

    def __init__(
        self,
        retriever: Callable[..., dspy.Prediction | Sequence[Passage]],
        reranker: RerankGrpcModule,
    ) -> None:
        """Takes any retriever of DSPy: called with a query, it returns passages or a prediction of them."""
        super().__init__()
        self.retriever = retriever
        self.reranker = reranker

    def forward(self, query: str, k: int | None = None, **retrieving: Any) -> dspy.Prediction:
        """Passes the query and `retrieving` to the retriever, and its passages to the reranker."""
        found = _fields(self.retriever(query, **retrieving))
        return _reordered(found, self.reranker(query=query, passages=found["passages"], k=k))

    async def aforward(self, query: str, k: int | None = None, **retrieving: Any) -> dspy.Prediction:
        """Does the same; awaits the retriever's `acall` if it has one."""
        ask = getattr(self.retriever, "acall", self.retriever)
        answer = ask(query, **retrieving)
        found = _fields(await answer if isinstance(answer, Awaitable) else answer)
        return _reordered(found, await self.reranker.acall(query=query, passages=found["passages"], k=k))


def _texts(passages: Sequence[Passage]) -> list[str]:
    return [passage if isinstance(passage, str) else _long_text(passage) for passage in passages]


def _long_text(passage: Passage) -> str:
    text = passage.get("long_text") if isinstance(passage, Mapping) else getattr(passage, "long_text", None)
    if not isinstance(text, str):
        raise TypeError(f"passages: a text or an object with long_text, not {type(passage).__name__}")
    return text


def _ranked(passages: Sequence[Passage], results: Scored) -> dspy.Prediction:
    return dspy.Prediction(
        passages=[passages[result.index] for result in results],
        scores=[result.relevance_score for result in results],
        indices=[result.index for result in results],
    )


def _fields(found: dspy.Prediction | Sequence[Passage]) -> dict[str, Any]:
    if isinstance(found, dspy.Prediction):
        return dict(found.items())
    return {"passages": list(found)}


def _reordered(found: Mapping[str, Any], ranked: dspy.Prediction) -> dspy.Prediction:
    """Puts the retriever's lists in the order of the ranked passages, the rest as it was."""
    count = len(found["passages"])
    kept = {
        name: [each[index] for index in ranked.indices]
        if isinstance(each, list | tuple) and len(each) == count
        else each
        for name, each in found.items()
    }
    return dspy.Prediction(**{**kept, "scores": ranked.scores})
