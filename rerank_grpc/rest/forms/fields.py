"""Fields of a JSON body: a null counts as absent, a wrong value is an InvalidRequest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import check_count
from rerank_grpc.rest.forms.decoded import LOGIT, RELEVANCE, Body, Pair, Score
from rerank_grpc.types import Truncation

# A number that came as a text; int takes the time of a square for thousands of digits.
MAX_DIGITS = 40
WHOLE = re.compile(r"\s*[+-]?[0-9]+(\.0*)?\s*")
DECIMAL = re.compile(r"\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)\s*")

# The types of a content part that hold text.
TEXT_TYPES = ("text", "input_text")

# The fields of an object, and the types of a content part, that hold no text.
MEDIA = {
    "audio": "sounds",
    "audio_url": "sounds",
    "file": "files",
    "image": "images",
    "image_base64": "images",
    "image_url": "images",
    "images": "images",
    "input_audio": "sounds",
    "input_image": "images",
    "pdf": "files",
    "video": "videos",
    "video_url": "videos",
}


class Nested(Mapping[str, Any]):
    """A body that is read through its objects: "input.query" is the field `query` of the object `input`."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def __getitem__(self, name: str) -> Any:
        """Finds a field; raises KeyError where it is absent, InvalidRequest where it is in no object."""
        outer, dot, inner = name.partition(".")
        found = self._body[outer]
        if not dot:
            return found
        if found is None:
            raise KeyError(name)
        if not isinstance(found, dict):
            raise wrong(outer, "an object", found)
        return found[inner]

    def __iter__(self) -> Iterator[str]:
        return iter(self._body)

    def __len__(self) -> int:
        return len(self._body)


def first(body: Body, name: str, other: str) -> str:
    """Tells which of two names for the same thing has a value; where none has, the first."""
    return other if body.get(name) is None and body.get(other) is not None else name


def text(body: Body, name: str, default: str = "") -> str:
    """Reads a text."""
    found = body.get(name)
    if found is None:
        return default
    if not isinstance(found, str):
        raise wrong(name, "a text", found)
    return found


def query(body: Body, name: str = "query") -> str:
    """Reads the query, which must be there: a text, an object with one, or content parts."""
    found = body.get(name)
    if found is None:
        raise InvalidRequest.of(name, "is missing")
    read = content(name, found)
    if read is None:
        raise no_text(name, found)
    return read


def content(name: str, found: Any) -> str | None:
    """Reads a text, a list of content parts, or what an object has as `text` or `content`; else None."""
    if isinstance(found, str):
        return found
    if isinstance(found, list) and found:
        return "\n".join([_part(f"{name}[{index}]", part) for index, part in enumerate(found)])
    if (key := text_key(found)) is None:
        return None
    name, inner = f"{name}.{key}", found[key]
    if isinstance(inner, str) or (key == "content" and isinstance(inner, list)):
        return content(name, inner)
    raise wrong(name, "a text", inner)


def text_name(name: str, found: Any) -> str:
    """Names the caller's own field that holds the text of a query or document."""
    key = text_key(found)
    return name if key is None else f"{name}.{key}"


def text_key(found: Any) -> str | None:
    """Names the field with the text of a query or document that is an object: `text`, else `content`."""
    if not isinstance(found, dict):
        return None
    return next((key for key in ("text", "content") if found.get(key) is not None), None)


def no_text(name: str, found: Any) -> InvalidRequest:
    """Makes the error of a query, document or content part without a text, and says what it is instead."""
    if found is None:
        return InvalidRequest.of(name, "is null: send a text, or leave it out")
    if not isinstance(found, dict):
        return wrong(name, "a text, or an object with a text", found)
    kind = found.get("type")
    if media := MEDIA.keys() & {*found, kind if isinstance(kind, str) else ""}:
        return InvalidRequest.of(name, f"{MEDIA[min(media)]} are not served: send a text")
    return InvalidRequest.of(name, "has no text: send a text, or an object with a text")


def _part(name: str, part: Any) -> str:
    """Reads one content part, an object of type text."""
    if not isinstance(part, dict):
        raise wrong(name, "a part of type text", part)
    read = part.get("text") if part.get("type", "text") in TEXT_TYPES else None
    if not isinstance(read, str):
        raise no_text(name, part)
    return read


def pairs(name: str, listed: Sequence[Any]) -> list[Pair]:
    """Reads the pairs of texts in a list."""
    check_count(name, len(listed))
    return [pair(f"{name}[{index}]", found) for index, found in enumerate(listed)]


def pair(name: str, found: Any) -> Pair:
    """Reads a pair of texts."""
    if not isinstance(found, list | tuple) or len(found) != 2 or not all(isinstance(t, str) for t in found):
        raise InvalidRequest.of(name, "must be a pair of texts")
    return found[0], found[1]


def whole(body: Body, name: str) -> int:
    """Reads a whole number, which some callers send as a text; absent is 0."""
    found = body.get(name)
    if found is None:
        return 0
    if isinstance(found, str) and len(found) <= MAX_DIGITS and WHOLE.fullmatch(found):
        return int(found.partition(".")[0])
    if isinstance(found, float) and found.is_integer():
        return int(found)
    if isinstance(found, bool) or not isinstance(found, int):
        raise wrong(name, "a whole number", found)
    return found


def count(body: Body, name: str) -> int:
    """Reads a whole number from 0; absent is 0."""
    if body.get(name) is None:
        return 0
    number = whole(body, name)
    if number < 0:
        raise InvalidRequest.of(name, "must not be below 0")
    return number


def number(body: Body, name: str) -> float | None:
    """Reads a number, which some callers send as a text."""
    found = body.get(name)
    if isinstance(found, str) and len(found) <= MAX_DIGITS and DECIMAL.fullmatch(found):
        return float(found)
    if isinstance(found, bool) or not isinstance(found, int | float | None):
        raise wrong(name, "a number", found)
    return found


def top_n(body: Body, name: str, available: int) -> int:
    """Reads the number of results wanted; 0 and more than there are mean all."""
    wanted = count(body, name)
    return 0 if wanted >= available else wanted


def flag(body: Body, name: str, default: bool = False) -> bool:
    """Reads true or false, which some callers send as a text."""
    found = body.get(name)
    if found is None:
        return default
    if isinstance(found, str) and found.lower() in ("true", "false"):
        return found.lower() == "true"
    if not isinstance(found, bool):
        raise wrong(name, "true or false", found)
    return found


def score(body: Body) -> Score:
    """Reads from `raw_scores` whether a score is the logit."""
    return LOGIT if flag(body, "raw_scores") else RELEVANCE


def truncation(body: Body, cuts: str, side: str) -> Truncation:
    """Reads from two fields whether a text that is too long is cut, and on which side; else it is refused."""
    if body.get(cuts) is None and body.get(side) is None:
        return Truncation.END
    wanted = choice(body, side, ("right", "left"), "right")
    if not flag(body, cuts, True):
        return Truncation.NONE
    return Truncation.START if wanted == "left" else Truncation.END


def choice(body: Body, name: str, choices: Sequence[str], default: str) -> str:
    """Reads one of several words, in any case."""
    found = text(body, name, default)
    for word in choices:
        if found.lower() == word.lower():
            return word
    raise InvalidRequest.of(name, f"must be one of {', '.join(choices)}")


_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}


def wrong(name: str, wanted: str, found: Any) -> InvalidRequest:
    """Makes the error of a value of a wrong type, which it does not repeat."""
    return InvalidRequest.of(name, f"must be {wanted}, not {_KINDS.get(type(found), 'an object')}")
