"""vLLM's score form: one text against many, or as many against as many, in input order."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.rest.dialects import superset
from rerank_grpc.rest.forms import documents, fields
from rerank_grpc.rest.forms.decoded import (
    Body,
    Decoded,
    Dialect,
    Json,
    Names,
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
    (left, query), (right, document) = _side(body, one), _side(body, two)
    if len(left) == 1:
        left, query = left * len(right), query(0).format
    if len(left) != len(right):
        raise InvalidRequest.of(two, f"holds {len(right):,} texts, {one} {len(left):,}: one, or as many")
    like = RerankRequest(
        query="",
        documents=(),
        model=fields.text(body, "model"),
        max_tokens_per_document=superset.token_limit(body),
        truncation=fields.truncation(body, *superset.TRUNCATION),
    )
    encode = partial(_encode, superset.score(body))
    return decoded_pairs(zip(left, right, strict=True), encode, like, Names(query, document))


def _side(body: Body, name: str) -> tuple[list[str], Callable[[int], str]]:
    """Reads the texts of one side, a list or one alone, and how the caller names each."""
    found = body.get(name)
    if isinstance(found, str | dict):
        return [fields.query(body, name)], fields.text_name(name, found).format
    given = documents.read(body, name)
    return given.texts, given.field


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
