"""Reads a stream of bytes as lines of text, within bounds, and says what is wrong with one."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from rerank_grpc.errors import ConfigurationError
from rerank_grpc.units import in_bytes

LONGEST_LINE = 64 << 20  # bytes: a record may hold vectors beside its text


class Line(NamedTuple):
    """A line: its number from 1, its text with its end, and the bytes that it takes in the stream.

    A line that is no text has "" and, as `problem`, what is wrong with it.
    """

    number: int
    text: str
    size: int
    problem: str = ""


def read_lines(stream: BinaryIO, name: str) -> Iterator[Line]:
    """Yields a stream's lines; a byte order mark before the first is left out.

    Raises ConfigurationError, with the stream's `name`, for UTF-16 and for a line above 64 MiB, whose end is
    not looked for.
    """
    number = 0
    while data := stream.readline(LONGEST_LINE + 1):
        number, size = number + 1, len(data)
        if size > LONGEST_LINE:
            too_long = f"is longer than {in_bytes(LONGEST_LINE)}: is this a file of lines?"
            raise ConfigurationError(f"{name}:{number}: {too_long}")
        if number == 1:
            if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise ConfigurationError(f"{name}: is UTF-16: convert it by iconv -t UTF-8")
            data = data.removeprefix(codecs.BOM_UTF8)
        text, problem = decode(data)
        yield Line(number, text, size, problem)


def decode(data: bytes) -> tuple[str, str]:
    """Decodes a part of a text; returns it, and what is wrong with it ("" where nothing is)."""
    if b"\0" in data:
        return "", "holds a NUL byte: is this a text in UTF-8?"
    try:
        return data.decode(), ""
    except UnicodeDecodeError:
        return "", "is not UTF-8: convert the file by iconv -t UTF-8"
