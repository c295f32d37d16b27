"""The bound on a message's values, counted before it is parsed: millions of small ones fit into 8 MiB."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.limits import LIMITS
from rerank_grpc.server.lanes import Parse, parser
from rerank_grpc.server.methods import BYTES, skip, varint

# A request has a query and a passage for each document; the rest are names, shapes and parameters.
MOST_VALUES = 2 * LIMITS.documents + 256
_TEXTS = (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING)


def bounded_parser(kind: type[Message]) -> Parse:
    """Makes the Parse of a message type that refuses one with more than MOST_VALUES values, at any depth."""
    parse, descriptor = parser(kind, LIMITS.message_bytes), cast("Descriptor", kind.DESCRIPTOR)

    def parse_bounded(data: bytes) -> object:
        left = MOST_VALUES
        for path, values in _values(descriptor, data, "", 0, len(data)):
            left -= values
            if left < 0:
                text = f"the message holds more than {MOST_VALUES:,} values"
                raise InvalidRequest.of(path, f"{text}; {LIMITS.documents:,} passages are allowed")
        return parse(data)

    return parse_bounded


def _values(kind: Descriptor, data: bytes, path: str, at: int, end: int) -> Iterator[tuple[str, int]]:
    """Yields the path of each field between two positions, and of those within it, with its most values.

    Raises InvalidRequest at a group, which could hide others; the parser refuses cut messages.
    """
    seen: Counter[int] = Counter()
    while at < end:
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        stop = skip(data, at, wire)
        if stop is None:
            raise InvalidRequest(f"the message is no {kind.full_name}")
        field = kind.fields_by_number.get(number)
        name = path + (_name(field, seen[number]) if field else f"field {number}")
        seen[number] += 1
        yield name, stop - at if _is_packed(field, wire) else 1
        if field and field.message_type and wire == BYTES:
            start = varint(data, at)[1]
            yield from _values(field.message_type, data, f"{name}.", start, min(stop, end))
        at = stop


def _name(field: FieldDescriptor, index: int) -> str:
    return f"{field.name}[{index}]" if field.message_type and field.is_repeated else field.name


def _is_packed(field: FieldDescriptor | None, wire: int) -> bool:
    """Tells whether a length-delimited field may hold a value in each byte."""
    return bool(field and wire == BYTES and not field.message_type and field.type not in _TEXTS)
