"""Rows of an input: a query with its documents, or a flat pair, each checked or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import LIMITS, check_request
from rerank_grpc.types import Document, Priority, RerankRequest

FIELDS = ("id", "query", "documents", "document", "instruction")


class InputRow(NamedTuple):
    """One checked row; `number` counts from 1, and is the id of a row without one."""

    number: int
    id: str | int
    query: str
    documents: tuple[Document, ...]
    instruction: str = ""
    flat: bool = False  # one pair, whose result is one score

    @property
    def characters(self) -> int:
        """The characters of its pairs: each document is read together with the query."""
        beside = (len(self.query) + len(self.instruction)) * len(self.documents)
        return beside + sum(len(each.text) for each in self.documents)

    def requests(self) -> Iterator[RerankRequest]:
        """Makes the row's requests, in its documents' order: several, where one may not hold them all."""
        most = LIMITS.documents
        for start in range(0, len(self.documents), most):
            documents = self.documents[start : start + most]
            yield RerankRequest(self.query, documents, instruction=self.instruction, priority=Priority.BATCH)


class BadRow(NamedTuple):
    """A row that is not scored, and the reason; `id` is None where none could be read."""

    number: int
    id: str | int | None
    reason: str

    def line(self) -> str:
        """Makes its line of the side file."""
        known = {} if self.id is None else {"id": self.id}
        return json.dumps({"row": self.number, **known, "reason": self.reason}, ensure_ascii=False) + "\n"


class _Wrong(Exception):
    """A field has a value of the wrong kind; the text says which and how."""


def read_row(number: int, value: object, *, flat: bool | None, instruction: str = "") -> InputRow | BadRow:
    """Checks one decoded row of a file whose rows are `flat`, or are not (None: not known yet)."""
    if not isinstance(value, Mapping):
        return BadRow(number, None, f"is {_kind(value)}, must be an object with query and documents")
    found = value.get("id")
    known = found if isinstance(found, (str, int)) and not isinstance(found, bool) else None
    if isinstance(known, str) and (len(known) > LIMITS.id_characters or not _is_unicode(known)):
        known = None
    try:
        row = _row(number, value, flat, instruction)
        for request in row.requests():
            check_request(request)
    except (_Wrong, InvalidRequest) as error:
        return BadRow(number, known, str(error))
    return row


def is_flat(value: object) -> bool | None:
    """Tells the form of a decoded row: a flat pair or not; None where it has neither form's field."""
    if not isinstance(value, Mapping):
        return None
    if value.get("documents") is not None:
        return False
    return True if value.get("document") is not None else None


def _row(number: int, value: Mapping[str, Any], flat: bool | None, instruction: str) -> InputRow:
    own = is_flat(value)
    if own is None:
        raise _Wrong(f"{'document' if flat else 'documents'}: missing")
    if flat is not None and own is not flat:
        names = ("document", "documents") if own else ("documents", "document")
        raise _Wrong(f"{names[0]}: the file's other rows have {names[1]}")
    documents = [value["document"]] if own else value["documents"]
    if not isinstance(documents, Sequence) or isinstance(documents, (str, bytes)):
        raise _Wrong(f"documents: is {_kind(documents)}, must be a list")
    if not documents:
        raise _Wrong("documents: must not be empty")
    given = value.get("instruction")
    return InputRow(
        number,
        _id(value.get("id"), number),
        _text("query", value.get("query")),
        tuple(
            [_document("document" if own else f"documents[{i}]", each) for i, each in enumerate(documents)]
        ),
        _text("instruction", instruction if given is None else given),
        own,
    )


def _id(value: object, number: int) -> str | int:
    if value is None:
        return number
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _Wrong(f"id: is {_kind(value)}, must be a string or a whole number")
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise _Wrong("id: has more than 64 bits")
        return value
    if len(value) > LIMITS.id_characters:
        raise _Wrong(f"id: has {len(value):,} characters, at most {LIMITS.id_characters:,} are allowed")
    return _text("id", value)


def _document(field: str, value: object) -> Document:
    """Takes a text, or an object with a text and perhaps an id."""
    if isinstance(value, str):
        return Document(_text(field, value))
    if not isinstance(value, Mapping):
        raise _Wrong(f"{field}: is {_kind(value)}, must be a string, or an object with text")
    own = value.get("id")
    if own is not None and (isinstance(own, bool) or not isinstance(own, (str, int))):
        raise _Wrong(f"{field}.id: is {_kind(own)}, must be a string or a whole number")
    return Document(
        _text(f"{field}.text", value.get("text")), "" if own is None else _text(f"{field}.id", str(own))
    )


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"{field}: {'missing' if value is None else f'is {_kind(value)}, must be a string'}")
    if not _is_unicode(value):
        raise _Wrong(f"{field}: holds half of a surrogate pair, which is no character")
    return value


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    """Names a decoded value's kind as JSON does."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, bytes):
        return "binary"
    if isinstance(value, Sequence):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"  # of Parquet
