"""NVIDIA NIM: passages, ranked by their raw logits."""

from __future__ import annotations

from rerank_grpc.rest.dialects import fields, superset
from rerank_grpc.rest.dialects.base import Body, Call, Context, Dialect, Json, Reply
from rerank_grpc.types import RerankRequest, Truncation

TRUNCATIONS = {"END": Truncation.END, "START": Truncation.START, "NONE": Truncation.NONE}


def decode(body: Body, _context: Context) -> Call:
    """Reads query and passages, objects with a text each."""
    request = RerankRequest(
        query=fields.query(body),
        documents=fields.documents(body, "passages"),
        model=fields.text(body, "model"),
        truncation=TRUNCATIONS[fields.choice(body, "truncate", tuple(TRUNCATIONS), "END")],
    )
    return Call((request,), encode, raw_scores=True)


def encode(reply: Reply) -> Json:
    """Writes the rankings, best first."""
    rankings = [{"index": result.index, "logit": result.score} for result in reply.results]
    return {"rankings": rankings, "usage": superset.usage(reply)}


NIM = Dialect("nim", decode)
