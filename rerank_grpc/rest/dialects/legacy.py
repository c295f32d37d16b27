"""The forms of two older services: documents with their ranks, and text pairs in a Python literal."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import check_count
from rerank_grpc.rest.errors import Problem, common_body
from rerank_grpc.rest.forms import documents, fields
from rerank_grpc.rest.forms.decoded import (
    Body,
    Decoded,
    Dialect,
    Json,
    Pair,
    Posted,
    Reply,
    decoded_pairs,
    names_of_pairs,
)
from rerank_grpc.types import RerankRequest

MAX_LITERAL_CHARACTERS = 2_000_000
# Python's parser takes a second and 100 MB for a quarter of a million brackets. A look in linear time at
# the text between the strings comes first: a string that is not closed ends with the text.
STRING = re.compile(r"""u?'(?:[^'\\]++|\\.)*+(?:'|\Z)|u?"(?:[^"\\]++|\\.)*+(?:"|\Z)""", re.DOTALL)
PAIR = r"[\[(]s,s,?[\])]"
PAIRS = re.compile(rf"[\[(](?:{PAIR}(?:,{PAIR})*+,?)?[\])]")
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


def _decode_batch(body: Body, _posted: Posted) -> Decoded:
    given = documents.read(body, "documents")
    fields.count(body, "batch_size")  # checked, and without effect: batches are the engine's
    request = RerankRequest(
        query=fields.query(body),
        documents=given.scored,
        model=fields.text(body, "model"),
        top_n=fields.top_n(body, "top_n", len(given.scored)),
    )
    encode = partial(_encode_batch, given.texts)
    return Decoded((request,), encode, wants_device=True, names=given.names(body))


def _encode_batch(texts: Sequence[str], reply: Reply) -> Json:
    return {
        "model": reply.model,
        "device": reply.device,
        "processing_time_seconds": round(reply.seconds, 6),
        "documents_processed": len(texts),
        "results": [
            {"document": texts[result.index], "score": result.relevance_score, "rank": rank}
            for rank, result in enumerate(reply.results, 1)
        ],
    }


BATCH = Dialect("batch", _decode_batch)


def _decode_pairs(body: Body, _posted: Posted) -> Decoded:
    listed = body.get("text_pairs")
    if isinstance(listed, str):
        listed = _literal(listed)
    if not isinstance(listed, list):
        raise InvalidRequest.of("text_pairs", "must be a list of pairs")
    pairs = fields.pairs("text_pairs", listed)
    encode = partial(_encode_pairs, pairs, datetime.now())
    return decoded_pairs(pairs, encode, RerankRequest("", ()), names_of_pairs("text_pairs"))


def _literal(text: str) -> Any:
    if len(text) > MAX_LITERAL_CHARACTERS:
        raise InvalidRequest.of("text_pairs", f"has more than {MAX_LITERAL_CHARACTERS:,} characters")
    between = "".join(STRING.sub("s", text).split())
    check_count("text_pairs", between.count("s") // 2)
    if not PAIRS.fullmatch(between):
        raise InvalidRequest.of("text_pairs", "is not a list of pairs")
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise InvalidRequest.of("text_pairs", "is not a list of pairs") from None


def _encode_pairs(asked: list[Pair], since: datetime, reply: Reply) -> Json:
    return _pairs_body(200, asked, [result.logit for result in reply.results], since)


def _pairs_error(problem: Problem) -> tuple[int, Json]:
    """Tells an unreadable body as these callers expect it: HTTP 200, and -1 in the body."""
    if problem.status == 400:
        return 200, _pairs_body(-1, [], [], datetime.now())
    return common_body(problem)


def _pairs_body(code: int, asked: list[Pair], scores: list[float], since: datetime) -> Json:
    return {
        "text_pairs": asked,
        "rerank_scores": scores,
        "request_time": since.strftime(TIME_FORMAT),
        "response_time": datetime.now().strftime(TIME_FORMAT),
        "code": code,
    }


TEXT_PAIRS = Dialect("text-pairs", _decode_pairs, _pairs_error)
