"""The legacy batch form: documents with their ranks from 1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rerank_grpc.rest.dialects import fields
from rerank_grpc.rest.dialects.base import Body, Decoded, Dialect, Json, Reply
from rerank_grpc.types import Document, RerankRequest


def _decode(body: Body, _path: str) -> Decoded:
    texts = fields.texts(body, "documents")
    fields.count(body, "batch_size")  # checked, and without effect: batches are the engine's
    request = RerankRequest(
        query=fields.query(body),
        documents=tuple(map(Document, texts)),
        model=fields.text(body, "model"),
        top_n=fields.top_n(body, "top_n", len(texts)),
    )
    return Decoded((request,), partial(_encode, texts), wants_device=True)


def _encode(texts: Sequence[str], reply: Reply) -> Json:
    return {
        "model": reply.model,
        "device": reply.device,
        "processing_time_seconds": round(reply.seconds, 6),
        "documents_processed": len(texts),
        "results": [
            {"document": texts[result.index], "score": result.relevance_score, "rank": rank}
            for rank, result in enumerate(reply.results, 1)
        ],
    }


BATCH = Dialect("batch", _decode)
