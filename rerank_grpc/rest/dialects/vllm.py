"""vLLM's score form: one text against many, or as many against as many, in input order."""

from __future__ import annotations

import time
from typing import Any

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.rest.dialects import fields, superset
from rerank_grpc.rest.dialects.base import Body, Call, Context, Dialect, Json, Reply, in_input_order
from rerank_grpc.types import RerankRequest

# The names of the two sides, in each of the form's versions.
SIDES = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))


def decode(body: Body, _context: Context) -> Call:
    """Reads the two sides, 1:N or N:N."""
    one, two = next((sides for sides in SIDES if fields.has(body, *sides)), SIDES[0])
    left, right = _texts(body, one), _texts(body, two)
    if len(left) == 1:
        left *= len(right)
    if len(left) != len(right):
        raise InvalidRequest.of(two, f"holds {len(right):,} texts, {one} {len(left):,}: one, or as many")
    like = RerankRequest(
        "", (), model=fields.text(body, "model"), max_tokens_per_document=superset.token_limit(body)
    )
    return fields.pairs_call(
        list(zip(left, right, strict=True)), encode, raw_scores=superset.wants_raw_scores(body), like=like
    )


def _texts(body: Body, name: str) -> list[str]:
    value: Any = body.get(name)
    if isinstance(value, str):
        return [value]
    return fields.texts(body, name)


def encode(reply: Reply) -> Json:
    """Writes one score for each pair."""
    return {
        "id": reply.request_id,
        "object": "list",
        "created": int(time.time()),
        "model": reply.model,
        "data": [
            {"index": result.index, "object": "score", "score": result.score}
            for result in in_input_order(reply.results)
        ],
        "usage": superset.usage(reply),
    }


SCORE = Dialect("vllm-score", decode)
