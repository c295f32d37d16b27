"""Text Embeddings Inference: a bare list; /predict scores pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.rest.errors import Problem
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
    with_documents,
)
from rerank_grpc.types import Document, RerankRequest, Truncation

LABEL = "LABEL_0"


def _decode(body: Body, _posted: Posted) -> Decoded:
    texts = fields.texts(body, "texts")
    request = RerankRequest(
        query=fields.query(body),
        documents=tuple(map(Document, texts)),
        top_n=fields.top_n(body, "top_n", len(texts)),
        truncation=_truncation(body),
    )
    shown = texts if fields.flag(body, "return_text") else ()
    return Decoded((request,), partial(_encode, shown, fields.score(body)))


def _truncation(body: Body) -> Truncation:
    """Reads how a text that is too long is cut; only an explicit false refuses it."""
    direction = fields.choice(body, "truncation_direction", ("right", "left"), "right")
    if not fields.flag(body, "truncate", True):
        return Truncation.NONE
    return Truncation.END if direction == "right" else Truncation.START


def _encode(shown: Sequence[Json], score: Score, reply: Reply) -> Json:
    results = [{"index": result.index, "score": score(result)} for result in reply.results]
    return with_documents(results, "text", shown)


def _decode_predict(body: Body, _posted: Posted) -> Decoded:
    return decoded_predict(body)


def decoded_predict(body: Body, model: str = "") -> Decoded:
    """Reads a pair, or a list of pairs; a single text has nothing to be scored against."""
    inputs = body.get("inputs")
    # [a, b] is one pair, [[a, b], ...] are several.
    single = isinstance(inputs, list) and inputs != [] and all(isinstance(item, str) for item in inputs)
    listed = [inputs] if single else inputs
    if not isinstance(listed, list):
        raise InvalidRequest.of("inputs", "must be a pair of texts, or a list of pairs")
    pairs, encode = fields.pairs("inputs", listed), partial(_encode_predict, single, fields.score(body))
    return decoded_pairs(pairs, encode, RerankRequest("", (), model, truncation=_truncation(body)))


def _encode_predict(single: bool, score: Score, reply: Reply) -> Json:
    scores = [[{"score": score(result), "label": LABEL}] for result in reply.results]
    return scores[0] if single else scores


# The status and error_type of TEI itself for the service's failures.
_STATUSES = {
    400: (422, "Validation"),
    429: (429, "Overloaded"),
    500: (424, "Backend"),
    503: (503, "Unhealthy"),
    504: (504, "Backend"),
}


def _error(problem: Problem) -> tuple[int, Json]:
    if problem.empty:
        status, kind = 400, "Empty"
    else:
        status, kind = _STATUSES.get(problem.status, (problem.status, "Validation"))
    return status, {"error": problem.message, "error_type": kind}


RERANK = Dialect("tei", _decode, _error)
PREDICT = Dialect("tei-predict", _decode_predict, _error)
