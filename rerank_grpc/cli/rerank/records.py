"""A document with its place, and the settings by which documents are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from rerank_grpc.errors import ConfigurationError
from rerank_grpc.limits import LIMITS


class DocumentRecord(NamedTuple):
    """A document, its place, and what else its record holds; lines count from 1, None is a whole file."""

    text: str
    file: str
    line: int | None = None
    id: str = ""
    fields: Mapping[str, Any] | None = None

    @property
    def place(self) -> str:
        """Names the file, and the line in it."""
        return self.file if self.line is None else f"{self.file}:{self.line}"


def refuse(problem: str) -> NoReturn:
    """Ends the reading at a bad document: raises ConfigurationError."""
    raise ConfigurationError(problem)


def ignore(count: int) -> None:
    """Takes a number of bytes that have been read, and does nothing with it."""


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """Settings of a reader: the names of fields, and its two listeners.

    `bad` hears of each document that is left out, in a line that begins with its place, and raises where none
    may be; `progress` hears of bytes that have been read.
    """

    text_field: str = "text"
    id_field: str = ""
    bad: Callable[[str], None] = refuse
    progress: Callable[[int], None] = ignore


def problem_of(text: str) -> str:
    """Says why no server takes a text; "" where one does."""
    if len(text) > LIMITS.characters:
        return f"has {len(text):,} characters, where a document has at most {LIMITS.characters:,}: split it"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half of a character at {error.start}: escape it by both its surrogates"
    return ""
