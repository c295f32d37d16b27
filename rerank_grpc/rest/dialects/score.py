"""vLLM's and DeepInfra's score forms: one text against many, or as many against as many, in input order."""

from __future__ import annotations

import time
from functools import partial

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.rest.dialects import superset
from rerank_grpc.rest.errors import Problem
from rerank_grpc.rest.forms import fields
from rerank_grpc.rest.forms.decoded import (
    Body,
    Decoded,
    Dialect,
    Json,
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
    model, tokens = fields.text(body, "model"), superset.token_limit(body)
    like = RerankRequest("", (), model, max_tokens_per_document=tokens)
    return decoded_pairs(_pairs(body, SIDES[0]), partial(_encode, superset.score(body)), like)


def _pairs(body: Body, default: tuple[str, str]) -> list[Pair]:
    """Reads both sides by the names that are there; `default` are those to be missed."""
    present = (sides for sides in SIDES if all(body.get(side) is not None for side in sides))
    one, two = next(present, default)
    left, right = _texts(body, one), _texts(body, two)
    if len(left) == 1:
        left *= len(right)
    if len(left) != len(right):
        raise InvalidRequest.of(two, f"holds {len(right):,} texts, {one} {len(left):,}: one, or as many")
    return list(zip(left, right, strict=True))


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


def _decode_deepinfra(body: Body, posted: Posted) -> Decoded:
    """Reads the same sides; the model is the path's."""
    model = posted.model or fields.text(body, "model")
    like = RerankRequest("", (), model, instruction=fields.text(body, "instruction"))
    return decoded_pairs(_pairs(body, DEEPINFRA_SIDES), _encode_deepinfra, like)


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
