"""NVIDIA NIM: passages, ranked by their raw logits."""

from __future__ import annotations

from rerank_grpc.rest.forms import documents, fields
from rerank_grpc.rest.forms.decoded import Body, Decoded, Dialect, Json, Posted, Reply, usage
from rerank_grpc.types import RerankRequest, Truncation


def _decode(body: Body, _posted: Posted) -> Decoded:
    given = documents.read(body, "passages")
    request = RerankRequest(
        query=fields.query(body),
        documents=given.scored,
        model=fields.text(body, "model"),
        # NVIDIA's own service has no such field; LiteLLM sends the first.
        top_n=fields.top_n(body, fields.first(body, "top_k", "top_n"), len(given.scored)),
        truncation=Truncation[fields.choice(body, "truncate", ("END", "START", "NONE"), "END")],
    )
    return Decoded((request,), _encode, names=given.names(body))


def _encode(reply: Reply) -> Json:
    rankings = [{"index": result.index, "logit": result.logit} for result in reply.results]
    return {"rankings": rankings, "usage": usage(reply)}


NIM = Dialect("nim", _decode)
