"""The legacy batch form: documents with their ranks from 1."""

from __future__ import annotations

from functools import partial

from rerank_grpc.rest.dialects import fields
from rerank_grpc.rest.dialects.base import Body, Call, Context, Dialect, Json, Reply
from rerank_grpc.types import RerankRequest


def decode(body: Body, _context: Context) -> Call:
    """Reads query and documents; batch_size is checked and has no effect: batches are the engine's."""
    documents = fields.documents(body)
    fields.count(body, "batch_size")
    request = RerankRequest(
        query=fields.query(body),
        documents=documents,
        model=fields.text(body, "model"),
        top_n=fields.top_n(body, "top_n", len(documents)),
    )
    return Call((request,), partial(encode, len(documents)), wants_device=True)


def encode(processed: int, reply: Reply) -> Json:
    """Writes the documents, best first."""
    return {
        "model": reply.model,
        "device": reply.device,
        "processing_time_seconds": round(reply.seconds, 6),
        "documents_processed": processed,
        "results": [
            {"document": result.text, "score": result.score, "rank": rank}
            for rank, result in enumerate(reply.results, 1)
        ],
    }


BATCH = Dialect("batch", decode)
