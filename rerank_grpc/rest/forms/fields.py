"""Fields of a JSON body: a null counts as absent, a wrong value is an InvalidRequest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import check_count
from rerank_grpc.rest.forms.decoded import LOGIT, RELEVANCE, Body, Pair, Score


def first(body: Body, name: str, other: str) -> str:
    """Tells which of two names for the same thing has a value; where none has, the first."""
    return other if body.get(name) is None and body.get(other) is not None else name


def text(body: Body, name: str, default: str = "") -> str:
    """Reads a text."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise _wrong(name, "a text", value)
    return value


def nested(body: Body, name: str) -> Body:
    """Reads an object; absent is an empty one."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(name, "an object", value)
    return value


def query(body: Body) -> str:
    """Reads the query, which must be there: a text, or an object with one."""
    value = body.get("query")
    if value is None:
        raise InvalidRequest.of("query", "is missing")
    return value if isinstance(value, str) else _text_in("query", value)


def texts(body: Body, name: str) -> list[str]:
    """Reads a list of texts, or of objects with a text; at least one, and not too many."""
    value = body.get(name)
    if value is None:
        raise InvalidRequest.of(name, "is missing")
    if not isinstance(value, list):
        raise _wrong(name, "a list of texts", value)
    check_count(name, len(value))
    return [
        item if isinstance(item, str) else _text_in(f"{name}[{index}]", item)
        for index, item in enumerate(value)
    ]


def pairs(name: str, listed: Sequence[Any]) -> list[Pair]:
    """Reads the pairs of texts in a list."""
    check_count(name, len(listed))
    return [_pair(f"{name}[{index}]", pair) for index, pair in enumerate(listed)]


def count(body: Body, name: str) -> int:
    """Reads a whole number from 0; absent is 0."""
    value = body.get(name)
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, "a whole number", value)
    if value < 0:
        raise InvalidRequest.of(name, "must not be below 0")
    return value


def top_n(body: Body, name: str, available: int) -> int:
    """Reads the number of results wanted; 0 and more than there are mean all."""
    wanted = count(body, name)
    return 0 if wanted >= available else wanted


def flag(body: Body, name: str, default: bool = False) -> bool:
    """Reads true or false, which some callers send as a text."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def score(body: Body) -> Score:
    """Reads from `raw_scores` whether a score is the logit."""
    return LOGIT if flag(body, "raw_scores") else RELEVANCE


def choice(body: Body, name: str, choices: Sequence[str], default: str) -> str:
    """Reads one of several words, in any case."""
    value = text(body, name, default)
    for word in choices:
        if value.lower() == word.lower():
            return word
    raise InvalidRequest.of(name, f"one of {', '.join(choices)}")


def _text_in(name: str, value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return str(value["text"])
    raise _wrong(name, "a text, or an object with a text", value)


def _pair(name: str, pair: Any) -> Pair:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(t, str) for t in pair):
        raise InvalidRequest.of(name, "must be a pair of texts")
    return pair[0], pair[1]


_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}


def _wrong(name: str, wanted: str, value: Any) -> InvalidRequest:
    # The field's name may be the caller's own; the value is never repeated.
    shown = re.sub(r"[^\w.\[\]]", "?", name)
    return InvalidRequest.of(shown, f"must be {wanted}, not {_KINDS.get(type(value), 'an object')}")
