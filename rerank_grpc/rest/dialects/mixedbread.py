"""Mixedbread: documents are the input."""

from __future__ import annotations

from functools import partial

from rerank_grpc.rest.dialects import fields, superset
from rerank_grpc.rest.dialects.base import Body, Call, Context, Dialect, Json, Ranked, Reply
from rerank_grpc.types import RerankRequest


def decode(body: Body, _context: Context) -> Call:
    """Reads query and input."""
    documents = fields.documents(body, "input")
    request = RerankRequest(
        query=fields.query(body),
        documents=documents,
        model=fields.text(body, "model"),
        top_n=fields.top_n(body, "top_k", len(documents)),
        instruction=fields.text(body, "instruction"),
    )
    return Call((request,), partial(encode, fields.flag(body, "return_input")))


def encode(with_input: bool, reply: Reply) -> Json:
    """Writes the rank results, best first."""
    return {
        "usage": superset.usage(reply),
        "model": reply.model,
        "data": [_result(with_input, result) for result in reply.results],
        "object": "list",
        "top_k": len(reply.results),
        "return_input": with_input,
    }


def _result(with_input: bool, result: Ranked) -> Json:
    encoded = {"index": result.index, "score": result.score, "object": "rank_result"}
    return {**encoded, "input": result.text} if with_input else encoded


MIXEDBREAD = Dialect("mixedbread", decode)
