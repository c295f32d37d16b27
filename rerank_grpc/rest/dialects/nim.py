"""NVIDIA NIM: passages, ranked by their raw logits."""

from __future__ import annotations

from rerank_grpc.rest.dialects import fields
from rerank_grpc.rest.dialects.base import Body, Decoded, Dialect, Json, Reply, usage
from rerank_grpc.types import RerankRequest, Truncation

TRUNCATIONS = {"END": Truncation.END, "START": Truncation.START, "NONE": Truncation.NONE}


def decode(body: Body, _path: str) -> Decoded:
    """Reads query and passages, objects with a text each."""
    request = RerankRequest(
        query=fields.query(body),
        documents=fields.documents(body, "passages"),
        model=fields.text(body, "model"),
        truncation=TRUNCATIONS[fields.choice(body, "truncate", tuple(TRUNCATIONS), "END")],
    )
    return Decoded((request,), encode)


def encode(reply: Reply) -> Json:
    """Writes the rankings, best first."""
    rankings = [{"index": result.index, "logit": result.logit} for result in reply.results]
    return {"rankings": rankings, "usage": usage(reply)}


NIM = Dialect("nim", decode)
