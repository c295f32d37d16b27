"""The legacy batch form: documents with their ranks from 1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rerank_grpc.rest.dialects import fields
from rerank_grpc.rest.dialects.base import Body, Decoded, Dialect, Json, Reply
from rerank_grpc.types import Document, RerankRequest


def decode(body: Body, _path: str) -> Decoded:
    """Reads query and documents; batch_size is checked and has no effect: batches are the engine's."""
    documents = fields.documents(body)
    fields.count(body, "batch_size")
    request = RerankRequest(
        query=fields.query(body),
        documents=documents,
        model=fields.text(body, "model"),
        top_n=fields.top_n(body, "top_n", len(documents)),
    )
    return Decoded((request,), partial(encode, documents), wants_device=True)


def encode(documents: Sequence[Document], reply: Reply) -> Json:
    """Writes the documents, best first."""
    return {
        "model": reply.model,
        "device": reply.device,
        "processing_time_seconds": round(reply.seconds, 6),
        "documents_processed": len(documents),
        "results": [
            {"document": documents[result.index].text, "score": result.relevance_score, "rank": rank}
            for rank, result in enumerate(reply.results, 1)
        ],
    }


BATCH = Dialect("batch", decode)
