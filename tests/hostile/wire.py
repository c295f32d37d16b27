"""Protobuf's encoding written by hand: messages that a library would refuse to make."""

from __future__ import annotations

import struct
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = range(6)
KIND = FieldDescriptor
DOUBLES = (0.0, -0.0, 1.5, -1.0, float("nan"), float("inf"), float("-inf"), 1e308, 5e-324)
INTEGERS = (0, 1, -1, 2, 7, 100, 1_000, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, -(2**63))
TEXTS = (
    b"",
    b" ",
    b"embedded",
    b"a query",
    b"text",
    "Füße 猫 👩‍👩‍👧".encode(),
    b"a\x00b",
    b"\x00",
    b"\xed\xa0\x80",  # a lone surrogate
    b"\xff\xfe",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",  # beyond Unicode
    b"\xef\xbb\xbf",
    "\u202e\u2066".encode(),
    b"[CLS] [SEP] </s>",
    b"\r\n\x1b[31m",
    b"a" * 4_097,
    b"word " * 300,
    b"a" * 100_001,
    "\u0301".encode() * 5_000,
)
# More than a parser goes into.
DEEP = (bytes([15 << 3 | GROUP]) * 300, bytes([15 << 3 | GROUP]) * 50 + bytes([15 << 3 | GROUP_END]) * 50)


def varint(number: int) -> bytes:
    """Encodes an integer; a negative one has ten bytes, as of an enum or an int32."""
    number &= (1 << 64) - 1
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def field(number: int, kind: int, value: bytes) -> bytes:
    """Encodes a field of a wire type."""
    length = varint(len(value)) if kind == BYTES else b""
    return varint(number << 3 | kind) + length + value


floats = st.sampled_from(DOUBLES)
integers = st.sampled_from(INTEGERS) | st.integers(-(2**63), 2**64)
texts = (
    st.sampled_from(TEXTS)
    | st.binary(max_size=30)
    | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass"))
)


def value_of(kind: FieldDescriptor, depth: int) -> st.SearchStrategy[bytes]:
    """Makes a field of its own type."""
    number = kind.number
    if kind.type == KIND.TYPE_DOUBLE:
        return floats.map(lambda value: field(number, FIXED64, struct.pack("<d", value)))
    if kind.type == KIND.TYPE_FLOAT:
        return floats.map(lambda value: field(number, FIXED32, packed_float(value)))
    if kind.type in (KIND.TYPE_FIXED64, KIND.TYPE_SFIXED64):
        return st.binary(min_size=8, max_size=8).map(lambda value: field(number, FIXED64, value))
    if kind.type in (KIND.TYPE_FIXED32, KIND.TYPE_SFIXED32):
        return st.binary(min_size=4, max_size=4).map(lambda value: field(number, FIXED32, value))
    if kind.type == KIND.TYPE_MESSAGE:
        assert kind.message_type is not None
        inner = fields_of(kind.message_type, depth - 1) if depth else st.just(b"")
        return (inner | texts).map(lambda value: field(number, BYTES, value))
    if kind.type in (KIND.TYPE_STRING, KIND.TYPE_BYTES):
        return texts.map(lambda value: field(number, BYTES, value))
    return integers.map(lambda value: field(number, VARINT, varint(value)))


def packed_float(value: float) -> bytes:
    """Packs a float, an infinity where it is too large for one."""
    return struct.pack("<f", value if abs(value) < 3e38 else float("inf"))


# A field of another type than its own, or that no message has.
others: st.SearchStrategy[bytes] = st.one_of(
    st.builds(field, st.integers(1, 20), st.just(BYTES), texts),
    st.builds(field, st.integers(1, 20), st.just(VARINT), integers.map(varint)),
    st.builds(field, st.integers(1, 20), st.just(FIXED32), st.binary(min_size=4, max_size=4)),
    st.builds(field, st.integers(1, 2**29 - 1), st.sampled_from([6, 7, GROUP, GROUP_END]), st.just(b"")),
    st.sampled_from(DEEP),
)


def fields_of(message: Descriptor, depth: int = 3) -> st.SearchStrategy[bytes]:
    """Makes messages of a type, most of them well-formed."""
    own = [value_of(each, depth) for each in message.fields]
    each = st.one_of(*own, *own, others) if own else others
    return st.lists(each, max_size=8).map(b"".join)


@st.composite
def mutated(draw: Any, sound: st.SearchStrategy[bytes]) -> bytes:
    """Cuts a piece out of a message, and puts another in its place."""
    message = draw(sound)
    begin = draw(st.integers(0, len(message)))
    end = draw(st.integers(begin, min(len(message), begin + 4)))
    return bytes(message[:begin] + draw(st.binary(max_size=4)) + message[end:])


def messages_of(message: Descriptor, good: bytes) -> st.SearchStrategy[bytes]:
    """Makes bytes for a method: odd messages of its type, a good one and those mutated, and anything."""
    odd = fields_of(message)
    return st.one_of(
        odd, odd.map(lambda more: good + more), mutated(odd | st.just(good)), st.binary(max_size=200)
    )
