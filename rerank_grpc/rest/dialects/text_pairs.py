"""The legacy text pairs, sent as a Python list literal in a text, or as a JSON list."""

from __future__ import annotations

import ast
import re
from datetime import datetime
from functools import partial
from typing import Any

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.rest.dialects import fields
from rerank_grpc.rest.dialects.base import Body, Call, Context, Dialect, Json, Reply, in_input_order
from rerank_grpc.rest.errors import Problem, common_body

MAX_LITERAL_CHARACTERS = 2_000_000
# Python's parser takes a second and a hundred megabytes for a quarter of a million brackets. So what
# is between the strings is looked at first, in linear time: one that is not closed ends with the text.
STRING = re.compile(r"""u?'(?:[^'\\]++|\\.)*+(?:'|\Z)|u?"(?:[^"\\]++|\\.)*+(?:"|\Z)""", re.DOTALL)
PAIR = r"[\[(]s,s,?[\])]"
PAIRS = re.compile(rf"[\[(](?:{PAIR}(?:,{PAIR})*+,?)?[\])]")
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"


def decode(body: Body, _context: Context) -> Call:
    """Reads the pairs."""
    pairs = body.get("text_pairs")
    if isinstance(pairs, str):
        pairs = _literal(pairs)
    if not isinstance(pairs, list):
        raise InvalidRequest.of("text_pairs", "must be a list of pairs")
    fields.check_count("text_pairs", len(pairs))
    texts = [_pair(index, pair) for index, pair in enumerate(pairs)]
    return fields.pairs_call(texts, partial(encode, texts, datetime.now()), raw_scores=True)


def _literal(text: str) -> Any:
    if len(text) > MAX_LITERAL_CHARACTERS:
        raise InvalidRequest.of("text_pairs", f"has more than {MAX_LITERAL_CHARACTERS:,} characters")
    between = "".join(STRING.sub("s", text).split())
    fields.check_count("text_pairs", between.count("s") // 2)
    if not PAIRS.fullmatch(between):
        raise InvalidRequest.of("text_pairs", "is not a list of pairs")
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise InvalidRequest.of("text_pairs", "is not a list of pairs") from None


def _pair(index: int, pair: Any) -> tuple[str, str]:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(t, str) for t in pair):
        raise InvalidRequest.of(f"text_pairs[{index}]", "must be a pair of texts")
    return pair[0], pair[1]


def encode(texts: list[tuple[str, str]], asked: datetime, reply: Reply) -> Json:
    """Writes the raw logits in the order of the pairs."""
    scores = [result.score for result in in_input_order(reply.results)]
    return _body(200, [list(pair) for pair in texts], scores, asked)


def error(problem: Problem) -> tuple[int, Json]:
    """Says what cannot be read as these callers expect it: HTTP 200, and -1 in the body."""
    if problem.status == 400:
        return 200, _body(-1, [], [], datetime.now())
    return common_body(problem)


def _body(code: int, pairs: list[list[str]], scores: list[float], asked: datetime) -> Json:
    return {
        "text_pairs": pairs,
        "rerank_scores": scores,
        "request_time": asked.strftime(TIME_FORMAT),
        "response_time": datetime.now().strftime(TIME_FORMAT),
        "code": code,
    }


TEXT_PAIRS = Dialect("text-pairs", decode, error)
