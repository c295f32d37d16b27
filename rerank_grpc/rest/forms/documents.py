"""Documents in a body: the text that is scored of each, and what its caller sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import orjson

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import LIMITS, check_count
from rerank_grpc.rest.forms import fields
from rerank_grpc.rest.forms.decoded import Body, Json, Names
from rerank_grpc.types import Document

MAX_RANK_FIELDS = 64


class Documents(NamedTuple):
    """The documents of a call: those to be scored, and each as it was sent under `name`.

    `rank_fields` are those that made the text of every object.
    """

    scored: tuple[Document, ...]
    sent: Sequence[Json]
    name: str = "documents"
    rank_fields: Sequence[str] = ()

    @property
    def texts(self) -> list[str]:
        """The texts that are scored."""
        return list(map(attrgetter("text"), self.scored))

    @property
    def objects(self) -> list[Json]:
        """The documents as objects: those that were sent as one, and the other texts under `text`."""
        return [
            {"text": sent} if isinstance(sent, str) else self._object(index)
            for index, sent in enumerate(self.sent)
        ]

    def _object(self, index: int) -> Json:
        sent = self.sent[index]
        return sent if isinstance(sent, dict) else {"text": self.scored[index].text}

    @property
    def ids(self) -> dict[int, Json]:
        """The callers' own ids, as they were sent, by the place of their documents."""
        return {index: self.sent[index]["id"] for index, document in enumerate(self.scored) if document.id}

    def field(self, index: int) -> str:
        """Names the caller's own field that holds a document's text."""
        name = f"{self.name}[{index}]"
        composed = [*self.rank_fields] not in ([], ["text"])
        return name if composed else fields.text_name(name, self.sent[index])

    def names(self, body: Body, query: str = "query", instruction: str = "instruction") -> Names:
        """Makes the names of a ranking, whose query is in another field of the body."""
        return Names(fields.text_name(query, body.get(query)).format, self.field, instruction)

    def check_same(self, body: Body, name: str) -> None:
        """Raises InvalidRequest where another list holds other texts; names the first place."""
        other = read(body, name, self.rank_fields)
        for index, (theirs, ours) in enumerate(zip(other.scored, self.scored, strict=False)):
            if theirs.text != ours.text:
                raise InvalidRequest.of(f"{name}[{index}]", f"differs from {self.name}[{index}]")
        if len(other.scored) != len(self.scored):
            text = f"holds {len(other.scored):,}, {self.name} {len(self.scored):,}: send one, or the same"
            raise InvalidRequest.of(name, text)


def read(body: Body, name: str, rank_fields: Sequence[str] = ()) -> Documents:
    """Reads a list of texts, objects or content parts; at least one, and not too many.

    The text of an object is its `rank_fields`; without those its `text`, else its
    `content`, else its own fields. Raises InvalidRequest.
    """
    listed = body.get(name)
    if listed is None:
        raise InvalidRequest.of(name, "is missing")
    if not isinstance(listed, list):
        raise fields.wrong(name, "a list of texts", listed)
    check_count(name, len(listed))
    scored = [
        Document(item) if isinstance(item, str) else _document(f"{name}[{index}]", item, rank_fields)
        for index, item in enumerate(listed)
    ]
    return Documents(tuple(scored), listed, name, rank_fields)


def rank_fields(body: Body) -> list[str]:
    """Reads the names of the fields that are scored of an object, each once, in the caller's order."""
    name = "rank_fields"
    listed = body.get(name)
    if listed is None:
        return []
    if not isinstance(listed, list) or not all(isinstance(field, str) for field in listed):
        raise fields.wrong(name, "a list of names of fields", listed)
    if len(listed) > MAX_RANK_FIELDS:
        raise InvalidRequest.of(name, f"holds {len(listed):,}, at most {MAX_RANK_FIELDS} are allowed")
    return list(dict.fromkeys(listed))


def _document(name: str, item: Any, rank_fields: Sequence[str]) -> Document:
    _check_depth(name, item)
    if isinstance(item, dict):
        text = _ranked(name, item, rank_fields) if rank_fields else fields.content(name, item)
        return Document(_own_fields(name, item) if text is None else text, _id(item.get("id")))
    text = fields.content(name, item)
    if text is None:
        raise fields.no_text(name, item)
    return Document(text)


def _ranked(name: str, item: Mapping[str, Any], rank_fields: Sequence[str]) -> str:
    """Writes the named fields that an object has."""
    found = {field: item[field] for field in rank_fields if item.get(field) is not None}
    if not found:
        raise InvalidRequest.of(name, "has none of the rank_fields")
    return _lines(found, alone=len(rank_fields) == 1)


def _own_fields(name: str, item: Mapping[str, Any]) -> str:
    """Writes the texts, numbers and flags of an object.

    The id says nothing about relevance, and objects and lists (vectors, metadata) would drown the rest.
    """
    of_a_part = item.get("type") in (*fields.TEXT_TYPES, *fields.MEDIA)
    left_out = fields.MEDIA.keys() | ({"id", "type"} if of_a_part else {"id"})
    found = {
        field: value
        for field, value in item.items()
        if isinstance(value, (str, int, float)) and field not in left_out
    }
    if not found:
        raise fields.no_text(name, item)
    return _lines(found, alone=len(found) == 1)


def _lines(found: Mapping[str, Any], *, alone: bool) -> str:
    """Writes fields as lines `field: value`; a value that stands `alone` is the text itself."""
    if alone:
        return "".join(map(_written, found.values()))
    return "\n".join([f"{field}: {_written(value)}" for field, value in found.items()])


def _written(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _id(found: Any) -> str:
    """Reads the caller's own id of a document, a short text or a whole number; else it is a mere field."""
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        return ""
    own = str(found)
    return own if len(own) <= LIMITS.id_characters else ""


def _check_depth(name: str, item: Any) -> None:
    """Raises InvalidRequest for a document that orjson reads, but does not write as deep within a reply."""
    values = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    if any(isinstance(value, (dict, list)) for value in values):
        try:
            orjson.dumps({"results": [{"document": item}]})
        except orjson.JSONEncodeError:
            raise InvalidRequest.of(name, "is nested too deeply") from None
