"""vLLM's score form: one text against many, or as many against as many, in input order."""

from __future__ import annotations

import time
from functools import partial

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.rest.dialects import superset
from rerank_grpc.rest.forms import fields
from rerank_grpc.rest.forms.decoded import (
    Body,
    Decoded,
    Dialect,
    Json,
    Posted,
    Reply,
    Score,
    decoded_pairs,
    usage,
)
from rerank_grpc.types import RerankRequest

# The names of the two sides, in each of the form's versions.
SIDES = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items"))


def _decode(body: Body, _posted: Posted) -> Decoded:
    present = (sides for sides in SIDES if all(body.get(side) is not None for side in sides))
    one, two = next(present, SIDES[0])
    left, right = _texts(body, one), _texts(body, two)
    if len(left) == 1:
        left *= len(right)
    if len(left) != len(right):
        raise InvalidRequest.of(two, f"holds {len(right):,} texts, {one} {len(left):,}: one, or as many")
    model, tokens = fields.text(body, "model"), superset.token_limit(body)
    like = RerankRequest("", (), model, max_tokens_per_document=tokens)
    return decoded_pairs(zip(left, right, strict=True), partial(_encode, superset.score(body)), like)


def _texts(body: Body, name: str) -> list[str]:
    value = body.get(name)
    return [value] if isinstance(value, str) else fields.texts(body, name)


def _encode(score: Score, reply: Reply) -> Json:
    data = [{"index": i, "object": "score", "score": score(result)} for i, result in enumerate(reply.results)]
    return {
        "id": reply.request_id,
        "object": "list",
        "created": int(time.time()),
        "model": reply.model,
        "data": data,
        "usage": usage(reply),
    }


SCORE = Dialect("vllm-score", _decode)
