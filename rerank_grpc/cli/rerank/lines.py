"""Opens a file of documents, and reads its lines as text within bounds."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from rerank_grpc.cli.rerank.records import ReadingOptions
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.files.obstacles import obstacle
from rerank_grpc.units import in_bytes

STDIN = "-"
LONGEST_LINE = 64 << 20  # bytes: a record may hold vectors beside its text


def name_of(path: str) -> str:
    """Names a file to a person."""
    return "stdin" if path == STDIN else path


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Opens a file for as long as the block runs; raises ConfigurationError where it cannot be read."""
    try:
        if path == STDIN:
            yield sys.stdin.buffer
        else:
            with open(path, "rb") as stream:
                yield stream
    except OSError as error:
        raise ConfigurationError(f"cannot read {name_of(path)}: {obstacle(path, error)}") from None


def decode(data: bytes) -> tuple[str, str]:
    """Decodes a part of a text; returns it, and what is wrong with it ("" where nothing is)."""
    if b"\0" in data:
        return "", "holds a NUL byte: is this a text in UTF-8?"
    try:
        return data.decode(), ""
    except UnicodeDecodeError:
        return "", "is not UTF-8: convert the file by iconv -t UTF-8"


def decoded_lines(path: str, options: ReadingOptions, *, skip: bool = True) -> Iterator[tuple[int, str]]:
    """Reads the lines of a file with their numbers and their ends; a byte order mark is left out.

    A line that is no text goes to `options.bad`, or raises ConfigurationError without `skip`: a row of a CSV
    may go over several lines. One above 64 MiB raises in any case: its end is not looked for.
    """
    with opened(path) as stream:
        number = 0
        while data := stream.readline(LONGEST_LINE + 1):
            number += 1
            options.progress(len(data))
            place = f"{name_of(path)}:{number}"
            if len(data) > LONGEST_LINE:
                raise ConfigurationError(
                    f"{place}: is longer than {in_bytes(LONGEST_LINE)}: is this a file of lines?"
                )
            if number == 1:
                if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise ConfigurationError(f"{name_of(path)}: is UTF-16: convert it by iconv -t UTF-8")
                data = data.removeprefix(codecs.BOM_UTF8)
            text, problem = decode(data)
            if not problem:
                yield number, text
            elif skip:
                options.bad(f"{place}: {problem}")
            else:
                raise ConfigurationError(f"{place}: {problem}")
