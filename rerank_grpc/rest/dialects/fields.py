"""Fields of a JSON body: a null counts as absent, a wrong value is an InvalidRequest."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest.dialects.base import LOGIT, RELEVANCE, Body, Score
from rerank_grpc.types import Document

_Read = TypeVar("_Read")


def first(body: Body, names: Sequence[str], read: Callable[[Body, str], _Read]) -> _Read:
    """Reads the first field with a value, of several names for the same thing."""
    for name in names:
        if body.get(name) is not None:
            return read(body, name)
    return read(body, names[0])


def text(body: Body, name: str, default: str = "") -> str:
    """Reads a text."""
    return _typed(body, name, str, "a text", default)


def nested(body: Body, name: str) -> Body:
    """Reads an object; absent is an empty one."""
    return _typed(body, name, dict, "an object", {})


def _typed(body: Body, name: str, kind: type[_Read], wanted: str, default: _Read) -> _Read:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise _wrong(name, wanted, value)
    return value


def query(body: Body, name: str = "query") -> str:
    """Reads the query, which must be there: a text, or an object with one."""
    value = body.get(name)
    if value is None:
        raise InvalidRequest.of(name, "is missing")
    return value if isinstance(value, str) else _text_in(name, value)


def documents(body: Body, name: str = "documents") -> tuple[Document, ...]:
    """Reads the documents: texts, or objects with a text; at least one, and not too many."""
    return tuple(map(Document, texts(body, name)))


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


def check_count(name: str, number: int) -> None:
    """Raises InvalidRequest unless a list holds something to score, and not too much."""
    if number == 0:
        raise InvalidRequest.of(name, "must not be empty")
    if number > LIMITS.documents:
        raise InvalidRequest.of(name, f"holds {number:,}, at most {LIMITS.documents:,} are allowed")


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


_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}


def _wrong(name: str, wanted: str, value: Any) -> InvalidRequest:
    # The field's name may be the caller's own; the value is never repeated.
    shown = re.sub(r"[^\w.\[\]]", "?", name)
    return InvalidRequest.of(shown, f"must be {wanted}, not {_KINDS.get(type(value), 'an object')}")
