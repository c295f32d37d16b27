"""Text Embeddings Inference: a bare list; /predict scores pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.rest.errors import Problem
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
    names_of_pairs,
    with_documents,
)
from rerank_grpc.types import LABEL, RerankRequest

TRUNCATION = "truncate", "truncation_direction"


def _decode(body: Body, posted: Posted) -> Decoded:
    given = documents.read(body, "texts")
    if body.get("documents") is not None:
        given.check_same(body, "documents")
    request = RerankRequest(
        query=fields.query(body),
        documents=given.scored,
        model=posted.model,
        top_n=fields.top_n(body, "top_n", len(given.scored)),
        truncation=fields.truncation(body, *TRUNCATION),
    )
    shown = given.texts if fields.flag(body, "return_text") else ()
    encode = partial(_encode, shown, fields.score(body))
    return Decoded((request,), encode, names=given.names(body))


def _encode(shown: Sequence[Json], score: Score, reply: Reply) -> Json:
    results = [{"index": result.index, "score": score(result)} for result in reply.results]
    return with_documents(results, "text", shown)


def _decode_predict(body: Body, posted: Posted) -> Decoded:
    return decoded_predict(body, posted.model)


def decoded_predict(body: Body, model: str) -> Decoded:
    """Reads a pair, or a list of pairs; a single text has nothing to be scored against."""
    inputs = body.get("inputs")
    if not isinstance(inputs, list):
        raise InvalidRequest.of("inputs", "must be a pair of texts, or a list of pairs")
    # [a, b] is one pair, [[a, b], ...] are several.
    single = bool(inputs) and all(isinstance(item, str) for item in inputs)
    pairs = [fields.pair("inputs", inputs)] if single else fields.pairs("inputs", inputs)
    names = Names("inputs[0]".format, "inputs[1]".format) if single else names_of_pairs("inputs")
    like = RerankRequest("", (), model, truncation=fields.truncation(body, *TRUNCATION))
    return decoded_pairs(pairs, partial(_encode_predict, single, fields.score(body)), like, names)


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
