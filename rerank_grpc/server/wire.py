"""Looks into a serialized message before it is parsed, because parsing makes an object of each document."""

from __future__ import annotations

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# A message has its documents and a dozen other fields; newer callers may know some more.
OTHER_FIELDS = 64
# Tags are counted piece by piece, so that a message full of them is told apart at once.
PIECE_BYTES = 1 << 16


def has_more_than(most: int, number: int, message: bytes) -> bool:
    """Tells whether a serialized message has more than `most` values of a length-delimited field.

    The walk ends after a few more fields than that, whichever they are, and with
    a field of a kind that nobody sends: such a message counts as one that has too
    many. It also ends where the message is cut off, which the parser will say.
    """
    tag = number << 3 | BYTES
    assert tag < 0x80
    if not _may_have_more(most, message, tag):
        return False
    at = fields = found = 0
    while at < len(message):
        key, at = _varint(message, at)
        fields += 1
        found += key >> 3 == number
        if found > most or fields > most + OTHER_FIELDS:
            return True
        end = _skip(message, at, key & 7)
        if end is None:
            return True
        at = end
    return False


def _may_have_more(most: int, message: bytes, tag: int) -> bool:
    """Tells, within microseconds, whether a tag might occur more often: by the byte it begins with."""
    found = 0
    for start in range(0, len(message), PIECE_BYTES):
        end = start + PIECE_BYTES
        found += message.count(tag, start, end) + message.count(tag | 0x80, start, end)
        if found > most:
            return True
    return False


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


def _skip(message: bytes, at: int, kind: int) -> int | None:
    """Returns where a field's value ends; None for a group, which could hide others, or no kind at all."""
    if kind == VARINT:
        return _varint(message, at)[1]
    if kind == BYTES:
        length, at = _varint(message, at)
        return at + length
    size = {FIXED64: 8, FIXED32: 4}.get(kind)
    return None if size is None else at + size
