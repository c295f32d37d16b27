"""Looks into a serialized message before it is parsed, because parsing makes an object of each document."""

from __future__ import annotations

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# A message has its documents and a dozen other fields; newer callers may know some more.
OTHER_FIELDS = 64


def has_more_than(most: int, number: int, message: bytes) -> bool:
    """Tells whether a serialized message has more than `most` values of a length-delimited field.

    The walk ends after a few more fields than that, whichever they are: a message
    of so many has too many in any case. It also ends where the message is
    malformed, which the parser will say.
    """
    tag = number << 3 | BYTES
    assert tag < 0x80
    if message.count(tag) <= most:  # each value has its tag: an upper bound, found in microseconds
        return False
    at = fields = found = 0
    while at < len(message) and found <= most and fields <= most + OTHER_FIELDS:
        key, at = _varint(message, at)
        fields += 1
        found += key == tag
        at = _skip(message, at, key & 7)
    return found > most or fields > most + OTHER_FIELDS


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Reads a varint of at most ten bytes; returns it and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, at


def _skip(message: bytes, at: int, kind: int) -> int:
    """Returns where a field's value ends; the message's end for what no field has."""
    if kind == VARINT:
        return _varint(message, at)[1]
    if kind == BYTES:
        length, at = _varint(message, at)
        return at + length
    return at + {FIXED64: 8, FIXED32: 4}.get(kind, len(message))
