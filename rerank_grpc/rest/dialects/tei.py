"""Text Embeddings Inference: a bare list; /predict scores pairs."""

from __future__ import annotations

from functools import partial
from typing import Any

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.rest.dialects import fields
from rerank_grpc.rest.dialects.base import Body, Call, Context, Dialect, Json, Reply, in_input_order
from rerank_grpc.rest.errors import Problem
from rerank_grpc.types import Document, RerankRequest, Truncation

LABEL = "LABEL_0"


def decode(body: Body, _context: Context) -> Call:
    """Reads a rerank call."""
    texts = fields.texts(body, "texts")
    request = RerankRequest(
        query=fields.query(body),
        documents=tuple(map(Document, texts)),
        top_n=fields.top_n(body, "top_n", len(texts)),
        truncation=truncation_of(body),
    )
    return Call(
        (request,),
        partial(encode, fields.flag(body, "return_text")),
        raw_scores=fields.flag(body, "raw_scores"),
    )


def truncation_of(body: Body) -> Truncation:
    """Reads how a text that is too long is cut; only an explicit false refuses it."""
    direction = fields.choice(body, "truncation_direction", ("right", "left"), "right")
    if not fields.flag(body, "truncate", True):
        return Truncation.NONE
    return Truncation.END if direction == "right" else Truncation.START


def encode(with_text: bool, reply: Reply) -> Json:
    """Writes the bare list, best first."""
    return [
        {"index": result.index, "score": result.score, **({"text": result.text} if with_text else {})}
        for result in reply.results
    ]


def decode_predict(body: Body, _context: Context) -> Call:
    """Reads a pair, or a list of pairs; a single text has nothing to be scored against."""
    inputs = body.get("inputs")
    # [a, b] is one pair, [[a, b], ...] are several.
    single = isinstance(inputs, list) and all(isinstance(item, str) for item in inputs)
    pairs = [inputs] if single else inputs
    if not isinstance(pairs, list):
        raise InvalidRequest.of("inputs", "must be a pair of texts, or a list of pairs")
    fields.check_count("inputs", len(pairs))
    return fields.pairs_call(
        [_pair(f"inputs[{index}]", pair) for index, pair in enumerate(pairs)],
        partial(encode_predict, single),
        raw_scores=fields.flag(body, "raw_scores"),
        like=RerankRequest("", (), truncation=truncation_of(body)),
    )


def _pair(name: str, pair: Any) -> tuple[str, str]:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise InvalidRequest.of(name, "must be a pair of texts")
    return pair[0], pair[1]


def encode_predict(single: bool, reply: Reply) -> Json:
    """Writes each pair's one label with its score, in the order of the pairs."""
    scores = [[{"score": result.score, "label": LABEL}] for result in in_input_order(reply.results)]
    return scores[0] if single else scores


# What TEI itself answers for the service's failures: status and error_type.
_STATUSES = {
    400: (422, "Validation"),
    429: (429, "Overloaded"),
    500: (424, "Backend"),
    503: (503, "Unhealthy"),
    504: (504, "Backend"),
}


def error(problem: Problem) -> tuple[int, Json]:
    """Says an error as TEI does."""
    if problem.empty:
        status, kind = 400, "Empty"
    else:
        status, kind = _STATUSES.get(problem.status, (problem.status, "Validation"))
    return status, {"error": problem.message, "error_type": kind}


RERANK = Dialect("tei", decode, error)
PREDICT = Dialect("tei-predict", decode_predict, error)
