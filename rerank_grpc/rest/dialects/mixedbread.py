"""Mixedbread: documents are the input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rerank_grpc.rest.dialects import base, fields
from rerank_grpc.rest.dialects.base import Body, Decoded, Dialect, Json, Reply
from rerank_grpc.types import RerankRequest


def decode(body: Body, _path: str) -> Decoded:
    """Reads query and input."""
    documents = fields.documents(body, "input")
    request = RerankRequest(
        query=fields.query(body),
        documents=documents,
        model=fields.text(body, "model"),
        top_n=fields.top_n(body, "top_k", len(documents)),
        instruction=fields.text(body, "instruction"),
    )
    shown = documents if fields.flag(body, "return_input") else ()
    return Decoded((request,), partial(encode, [document.text for document in shown]))


def encode(shown: Sequence[Json], reply: Reply) -> Json:
    """Writes the rank results, best first."""
    data = [{"index": r.index, "score": r.relevance_score, "object": "rank_result"} for r in reply.results]
    return {
        "usage": base.usage(reply),
        "model": reply.model,
        "data": base.with_documents(data, "input", shown),
        "object": "list",
        "top_k": len(reply.results),
        "return_input": bool(shown),
    }


MIXEDBREAD = Dialect("mixedbread", decode)
