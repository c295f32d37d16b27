"""A document compressor for LangChain, for its contextual compression retriever or on its own."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document

from rerank_grpc.client import ScoredDocument
from rerank_grpc.integrations.connection import Scored
from rerank_grpc.integrations.fields import RerankFields


class RerankGrpcCompressor(RerankFields, BaseDocumentCompressor):
    """Returns the documents by descending relevance, with `relevance_score` in the metadata of each.

        RerankGrpcCompressor(target="localhost:50051", top_n=3).compress_documents(documents, "query")

    The results are copies, with the id and the metadata of the documents; of a model with a calibration they
    have `calibrated_score` as well. A failed call raises a RerankError; see rerank_grpc.client.
    """

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Scores the documents and returns the best `top_n` of them, best first."""
        texts = [document.page_content for document in documents]
        return _scored(documents, self._connection.rerank(query, texts, **self._arguments()))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Does the same without a thread."""
        texts = [document.page_content for document in documents]
        return _scored(documents, await self._connection.arerank(query, texts, **self._arguments()))


def _scored(documents: Sequence[Document], results: Scored) -> list[Document]:
    return [_with_scores(documents[result.index], result) for result in results]


def _with_scores(document: Document, result: ScoredDocument) -> Document:
    metadata = {**document.metadata, "relevance_score": result.relevance_score}
    if result.calibrated_score is not None:
        metadata["calibrated_score"] = result.calibrated_score
    return document.model_copy(update={"metadata": metadata})
