"""Mixedbread: documents are the input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rerank_grpc.rest.dialects import base, fields
from rerank_grpc.rest.dialects.base import Body, Decoded, Dialect, Json, Reply
from rerank_grpc.types import Document, RerankRequest


def _decode(body: Body, _path: str) -> Decoded:
    texts = fields.texts(body, "input")
    request = RerankRequest(
        query=fields.query(body),
        documents=tuple(map(Document, texts)),
        model=fields.text(body, "model"),
        top_n=fields.top_n(body, "top_k", len(texts)),
        instruction=fields.text(body, "instruction"),
    )
    return Decoded((request,), partial(_encode, texts if fields.flag(body, "return_input") else ()))


def _encode(shown: Sequence[Json], reply: Reply) -> Json:
    data = [{"index": r.index, "score": r.relevance_score, "object": "rank_result"} for r in reply.results]
    return {
        "usage": base.usage(reply),
        "model": reply.model,
        "data": base.with_documents(data, "input", shown),
        "object": "list",
        "top_k": len(reply.results),
        "return_input": bool(shown),
    }


MIXEDBREAD = Dialect("mixedbread", _decode)
