"""Reads fields out of a JSON body; a null counts as absent, what is wrong as InvalidRequest."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import LIMITS
from rerank_grpc.rest.dialects.base import Body, Call, Json, Reply
from rerank_grpc.types import Document, RerankRequest

_Read = TypeVar("_Read")


def has(body: Body, *names: str) -> bool:
    """Tells whether all of these fields are there and not null."""
    return all(body.get(name) is not None for name in names)


def first(body: Body, names: Sequence[str], read: Callable[[Body, str], _Read]) -> _Read:
    """Reads the first of several names for the same thing that is there."""
    return read(body, next((name for name in names if has(body, name)), names[0]))


def text(body: Body, name: str, default: str = "") -> str:
    """Reads a text."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise _wrong(name, "a text", value)
    return value


def query(body: Body, name: str = "query") -> str:
    """Reads the query, which must be there: a text, or an object with one."""
    value = body.get(name)
    if value is None:
        raise InvalidRequest.of(name, "is missing")
    return _text_of(name, value)


def documents(body: Body, name: str = "documents") -> tuple[Document, ...]:
    """Reads the documents: texts, or objects with a text; at least one, and not too many."""
    return tuple(map(Document, texts(body, name)))


def texts(body: Body, name: str) -> list[str]:
    """Reads a list of texts: see `documents`."""
    value = body.get(name)
    if value is None:
        raise InvalidRequest.of(name, "is missing")
    if not isinstance(value, list):
        raise _wrong(name, "a list of texts", value)
    check_count(name, len(value))
    return [_text_of(f"{name}[{index}]", item) for index, item in enumerate(value)]


def check_count(name: str, number: int) -> None:
    """Raises InvalidRequest unless there is something to score, and not too much."""
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
    """Reads how many results are wanted; 0 and more than there are mean all."""
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


def choice(body: Body, name: str, choices: Sequence[str], default: str) -> str:
    """Reads one of several words, in any case."""
    value = text(body, name, default)
    for word in choices:
        if value.lower() == word.lower():
            return word
    raise InvalidRequest.of(name, f"one of {', '.join(choices)}")


def nested(body: Body, name: str) -> Body:
    """Reads an object; absent is an empty one."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(name, "an object", value)
    return value


def pairs_call(
    pairs: Sequence[tuple[str, str]],
    encode: Callable[[Reply], Json],
    *,
    raw_scores: bool,
    like: RerankRequest | None = None,
) -> Call:
    """Makes the call that scores pairs: one request for each query that differs.

    `like` has the options of all of them.
    """
    places: dict[str, list[int]] = {}
    for place, (query_text, _) in enumerate(pairs):
        places.setdefault(query_text, []).append(place)
    like = like or RerankRequest("", ())
    return Call(
        requests=tuple(
            RerankRequest(
                query=query_text,
                documents=tuple(Document(pairs[place][1]) for place in own),
                model=like.model,
                truncation=like.truncation,
                max_tokens_per_document=like.max_tokens_per_document,
                instruction=like.instruction,
            )
            for query_text, own in places.items()
        ),
        encode=encode,
        raw_scores=raw_scores,
        places=tuple(map(tuple, places.values())),
    )


def _text_of(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return str(value["text"])
    raise _wrong(name, "a text, or an object with a text", value)


_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}


def _wrong(name: str, wanted: str, value: Any) -> InvalidRequest:
    # The field's name may be the caller's own; the value is never repeated.
    shown = re.sub(r"[^\w.\[\]]", "?", name)
    return InvalidRequest.of(shown, f"must be {wanted}, not {_KINDS.get(type(value), 'an object')}")
