"""A ranker for AnswerDotAI's `rerankers`; importing it adds the model type "rerank-grpc" to `Reranker`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, TypeAlias, Unpack

from rerankers.documents import Document
from rerankers.models import AVAILABLE_RANKERS
from rerankers.models.ranker import BaseRanker
from rerankers.results import RankedResults, Result

from rerank_grpc.client import AsyncClient, Client
from rerank_grpc.integrations.connection import (
    AdapterOptions,
    CallArguments,
    ClosesClients,
    Connection,
    Scored,
    split,
)

MODEL_TYPE = "rerank-grpc"

Ids = Sequence[str] | Sequence[int]
Documents: TypeAlias = "str | Document | Sequence[str] | Sequence[Document]"


class RerankGrpcReranker(ClosesClients, BaseRanker):
    """Ranks documents by a rerank-grpc server.

        RerankGrpcReranker(target="localhost:50051").rank("query", ["one text", "another"]).top_k(1)

    Documents keep their ids and metadata. A failed call raises a RerankError; see rerank_grpc.client.
    """

    def __init__(
        self,
        model_name_or_path: str = "",
        verbose: int = 0,
        *,
        target: str | None = None,
        client: Client | None = None,
        async_client: AsyncClient | None = None,
        top_n: int | None = None,
        **options: Unpack[AdapterOptions],
    ) -> None:
        """Makes a ranker of a model that the server has; "" is its default one.

        `options` are those of Client and of Client.rerank. Raises ValueError for an address beside a client.
        """
        of_client, of_call = split(options)
        self.model = model_name_or_path
        self.verbose = verbose
        self.ranking_type = "pointwise"
        self._call: CallArguments = {**of_call, "model": model_name_or_path or None, "top_n": top_n}
        self._connection = Connection(target, client, async_client, **of_client)

    def rank(
        self,
        query: str,
        docs: Documents,
        doc_ids: Ids | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> RankedResults:
        """Ranks documents, best first; ids that are missing are the places in the list."""
        documents = _documents(docs, doc_ids, metadata)
        results = self._connection.rerank(query, _texts(documents), **self._call)
        return _ranked(query, documents, results)

    async def rank_async(
        self,
        query: str,
        docs: Documents,
        doc_ids: Ids | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> RankedResults:
        """Does the same without a thread."""
        documents = _documents(docs, doc_ids, metadata)
        results = await self._connection.arerank(query, _texts(documents), **self._call)
        return _ranked(query, documents, results)

    def score(self, query: str, doc: str) -> float:
        """Scores one document, whatever the least score of a result is."""
        call: CallArguments = {**self._call, "top_n": None}
        call["min_relevance_score"] = call["min_calibrated_score"] = None
        (result,) = self._connection.rerank(query, [doc], **call)
        return result.relevance_score


def _documents(docs: Documents, ids: Ids | None, metadata: Sequence[dict[str, Any]] | None) -> list[Document]:
    """Makes copies of what was given: rerankers' own `prep_docs` writes into the caller's documents."""
    given = [docs] if isinstance(docs, str | Document) else docs
    for name, each in (("doc_ids", ids), ("metadata", metadata)):
        if each is not None and len(each) != len(given):
            raise ValueError(f"{name}: {len(each)} for {len(given)} documents; give one for each")
    return [
        _document(index, each, ids[index] if ids else None, metadata[index] if metadata else None)
        for index, each in enumerate(given)
    ]


def _document(
    index: int, given: str | Document, own_id: str | int | None, metadata: dict[str, Any] | None
) -> Document:
    document = Document(given) if isinstance(given, str) else copy(given)
    if document.document_type != "text":
        raise ValueError(f"docs[{index}]: a text, not an {document.document_type}; the server scores texts")
    if own_id is not None:
        document.doc_id = own_id
    elif document.doc_id is None:
        document.doc_id = index
    if metadata is not None:
        document.metadata = metadata
    return document


def _texts(documents: Sequence[Document]) -> list[str]:
    return [document.text for document in documents]


def _ranked(query: str, documents: Sequence[Document], results: Scored) -> RankedResults:
    ranked = [
        Result(document=documents[result.index], score=result.relevance_score, rank=rank)
        for rank, result in enumerate(results, 1)
    ]
    return RankedResults(results=ranked, query=query, has_scores=True)


AVAILABLE_RANKERS[MODEL_TYPE] = RerankGrpcReranker
