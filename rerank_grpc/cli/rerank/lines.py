"""Opens a file of documents, and reads its lines as text within bounds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from rerank_grpc.cli.rerank.records import ReadingOptions
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.files.lines import read_lines
from rerank_grpc.files.obstacles import obstacle

STDIN = "-"


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


def decoded_lines(path: str, options: ReadingOptions, *, skip: bool = True) -> Iterator[tuple[int, str]]:
    """Reads the lines of a file with their numbers and their ends; a byte order mark is left out.

    A line that is no text goes to `options.bad`, or raises ConfigurationError without `skip`: a row of a CSV
    may go over several lines. One above 64 MiB raises in any case: its end is not looked for.
    """
    with opened(path) as stream:
        for number, text, size, problem in read_lines(stream, name_of(path)):
            options.progress(size)
            if not problem:
                yield number, text
                continue
            told = f"{name_of(path)}:{number}: {problem}"
            if not skip:
                raise ConfigurationError(told)
            options.bad(told)
