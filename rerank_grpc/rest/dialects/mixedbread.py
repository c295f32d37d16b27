"""Mixedbread: documents are the input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rerank_grpc.rest.dialects import fields
from rerank_grpc.rest.dialects.base import Body, Decoded, Dialect, Json, Reply, usage
from rerank_grpc.types import Document, RerankRequest


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
    return Decoded((request,), partial(encode, shown))


def encode(shown: Sequence[Document], reply: Reply) -> Json:
    """Writes the rank results, best first."""
    data = []
    for result in reply.results:
        encoded: dict[str, Json] = {
            "index": result.index,
            "score": result.relevance_score,
            "object": "rank_result",
        }
        if shown:
            encoded["input"] = shown[result.index].text
        data.append(encoded)
    return {
        "usage": usage(reply),
        "model": reply.model,
        "data": data,
        "object": "list",
        "top_k": len(reply.results),
        "return_input": bool(shown),
    }


MIXEDBREAD = Dialect("mixedbread", decode)
