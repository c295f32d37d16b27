"""Mixedbread: documents are the input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rerank_grpc.rest.forms import decoded, documents, fields
from rerank_grpc.rest.forms.decoded import Body, Decoded, Dialect, Json, Posted, Reply
from rerank_grpc.types import RerankRequest


def _decode(body: Body, _posted: Posted) -> Decoded:
    given = documents.read(body, "input", documents.rank_fields(body))
    request = RerankRequest(
        query=fields.query(body),
        documents=given.scored,
        model=fields.text(body, "model"),
        top_n=fields.top_n(body, "top_k", len(given.scored)),
        instruction=fields.text(body, "instruction"),
    )
    shown = given.sent if fields.flag(body, "return_input") else ()
    return Decoded((request,), partial(_encode, shown), names=given.names(body))


def _encode(shown: Sequence[Json], reply: Reply) -> Json:
    data = [{"index": r.index, "score": r.relevance_score, "object": "rank_result"} for r in reply.results]
    return {
        "usage": decoded.usage(reply),
        "model": reply.model,
        "data": decoded.with_documents(data, "input", shown),
        "object": "list",
        "top_k": len(reply.results),
        "return_input": bool(shown),
    }


MIXEDBREAD = Dialect("mixedbread", _decode)
