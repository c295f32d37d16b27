"""vLLM's and DeepInfra's score forms: one text against many, or as many against as many, in input order."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.rest.dialects import superset
from rerank_grpc.rest.errors import Problem
from rerank_grpc.rest.forms import documents, fields
from rerank_grpc.rest.forms.decoded import (
    Body,
    Decoded,
    Dialect,
    Json,
    Names,
    Pair,
    Posted,
    Reply,
    Score,
    decoded_pairs,
    usage,
)
from rerank_grpc.types import RerankRequest

# The names of the two sides, in each of the form's versions.
DEEPINFRA_SIDES = ("queries", "documents")
SIDES = (("text_1", "text_2"), ("data_1", "data_2"), DEEPINFRA_SIDES, ("queries", "items"))


def _decode(body: Body, _posted: Posted) -> Decoded:
    present = (sides for sides in SIDES if all(body.get(side) is not None for side in sides))
    pairs, names = _pairs(body, *next(present, SIDES[0]))
    like = RerankRequest(
        query="",
        documents=(),
        model=fields.text(body, "model"),
        max_tokens_per_document=superset.token_limit(body),
        truncation=fields.truncation(body, *superset.TRUNCATION),
    )
    return decoded_pairs(pairs, partial(_encode, superset.score(body)), like, names)


def _pairs(body: Body, one: str, two: str) -> tuple[list[Pair], Names]:
    """Reads both sides, and how the caller names their texts."""
    (left, query), (right, document) = _side(body, one), _side(body, two)
    if len(left) == 1:
        left, query = left * len(right), query(0).format
    if len(left) != len(right):
        raise InvalidRequest.of(two, f"holds {len(right):,} texts, {one} {len(left):,}: one, or as many")
    return list(zip(left, right, strict=True)), Names(query, document)


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


def _decode_deepinfra(body: Body, posted: Posted) -> Decoded:
    """Reads the same sides; the model is the path's."""
    pairs, names = _pairs(body, *DEEPINFRA_SIDES)
    model = posted.model or fields.text(body, "model")
    like = RerankRequest("", (), model, instruction=fields.text(body, "instruction"))
    return decoded_pairs(pairs, _encode_deepinfra, like, names)


def _encode_deepinfra(reply: Reply) -> Json:
    return {
        "scores": [result.relevance_score for result in reply.results],
        "input_tokens": reply.input_tokens,
        "request_id": reply.request_id,
        "inference_status": {
            "status": "succeeded",
            "runtime_ms": round(reply.seconds * 1000),
            "cost": 0.0,
            "tokens_generated": 0,
            "tokens_input": reply.input_tokens,
            "output_length": 0,
        },
    }


def _deepinfra_error(problem: Problem) -> tuple[int, Json]:
    return problem.status, {"detail": {"error": problem.message}}


DEEPINFRA = Dialect("deepinfra", _decode_deepinfra, _deepinfra_error)
