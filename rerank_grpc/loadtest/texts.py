"""The texts that are sent: made of words, no two calls alike, or recorded calls."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rerank_grpc.batch.reading import Input
from rerank_grpc.batch.rows import BadRow, read_row
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.files.manual import manual

QUERY_WORDS = 8
POOL = 4_096  # documents that are made beforehand: making one takes as long as sending a call
MOST_RECORDED = 256 << 20  # characters, all of which are held


class DrawnRange(NamedTuple):
    """A whole number drawn evenly from `least` to `most`."""

    least: int
    most: int

    def draw(self, chance: random.Random) -> int:
        """Draws one."""
        return chance.randint(self.least, self.most)


class CallTexts(NamedTuple):
    """The texts of one call."""

    query: str
    documents: Sequence[str]
    instruction: str = ""


class Texts(Protocol):
    """Gives each call its texts by its number."""

    def call(self, number: int) -> CallTexts:
        """Returns the texts of one call, the same for the same number."""
        ...

    def describe(self) -> dict[str, Any]:
        """Returns the facts by which the same texts are made again."""
        ...


class MadeTexts:
    """Draws texts from the words of Python's manual.

    Queries and documents end with the number of their call, so that no pair and no document is sent twice: a
    server need not score again what it knows, and a bi-encoder's vector of a document serves every query.
    """

    def __init__(self, seed: int, documents: DrawnRange, words: DrawnRange) -> None:
        self._seed, self._documents, self._words = seed, documents, words
        self._vocabulary = vocabulary()
        chance = random.Random(f"{seed} documents")
        count = max(POOL, documents.most)
        self._pool = [
            " ".join(chance.choices(self._vocabulary, k=words.draw(chance) - 1)) for _ in range(count)
        ]
        self._pool += self._pool[: documents.most]  # the neighbours of the last

    def call(self, number: int) -> CallTexts:
        """Returns the texts of one call."""
        chance = random.Random(f"{self._seed} {number}")
        query = " ".join(chance.choices(self._vocabulary, k=QUERY_WORDS))
        count = self._documents.draw(chance)
        place = chance.randrange(len(self._pool) - self._documents.most)
        pool = self._pool[place : place + count]
        documents = [f"{text} {number}.{index}".lstrip() for index, text in enumerate(pool)]
        return CallTexts(f"{query} {number}", documents)

    def describe(self) -> dict[str, Any]:
        """Returns the distribution of the texts."""
        return {
            "kind": "made",
            "documents": list(self._documents),
            "words": list(self._words),
            "query_words": QUERY_WORDS,
        }


class RecordedTexts:
    """Gives recorded calls in turn, again from the first behind the last; `times` is None without any."""

    def __init__(self, name: str, calls: Sequence[CallTexts], times: Sequence[float] | None) -> None:
        self.name, self.calls, self.times = name, calls, times

    def call(self, number: int) -> CallTexts:
        """Returns the texts of one call."""
        return self.calls[number % len(self.calls)]

    def describe(self) -> dict[str, Any]:
        """Returns the recording's name and size."""
        return {"kind": "recorded", "file": self.name, "calls": len(self.calls)}


def vocabulary() -> list[str]:
    """Lists the different words of Python's manual in the order of their first use."""
    words = (word.strip(".,;:()[]\"'`*") for text in manual() for word in text.split())
    return list(dict.fromkeys(word for word in words if word.isalpha()))


def read_recording(path: Path) -> RecordedTexts:
    """Reads the rows of a file as `rerank-grpc batch` takes them, each with `at` in seconds or none.

    Raises ConfigurationError with the file, the row and what was expected.
    """
    calls, times, held = list[CallTexts](), list[float](), 0
    for number, value in _rows(path):
        row = read_row(number, value, flat=None)
        if isinstance(row, BadRow):
            raise ConfigurationError(f"--replay: {path}, row {number}: {row.reason}")
        calls.append(CallTexts(row.query, tuple(each.text for each in row.documents), row.instruction))
        held += row.characters
        if held > MOST_RECORDED:
            raise ConfigurationError(
                f"--replay: {path}, row {number}: over {MOST_RECORDED >> 20} Mi characters: give fewer rows"
            )
        if (at := _time(path, number, value, times)) is not None:
            times.append(at)
        if times and len(times) != len(calls):
            raise ConfigurationError(
                f"--replay: {path}, row {number}: either all rows have at, in seconds, or none has"
            )
    if not calls:
        raise ConfigurationError(
            f"--replay: {path} has no rows: expected lines of "
            + json.dumps({"query": "...", "documents": ["..."]})
        )
    return RecordedTexts(path.name, calls, times or None)


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        source = Input.of(path)
        if source.form == "parquet":
            raise ConfigurationError(f"--replay: {path} is no .jsonl or .jsonl.gz")
        for row in source.rows():
            if row.reason:
                raise ConfigurationError(f"--replay: {path}, row {row.number}: {row.reason}")
            yield row.number, row.value
    except ConfigurationError as error:  # which names the option of another command
        raise ConfigurationError(str(error).replace("--input:", "--replay:", 1)) from None


def _time(path: Path, number: int, value: Any, before: Sequence[float]) -> float | None:
    """Takes a row's time; raises ConfigurationError where it is none, or earlier than the last one."""
    at = value.get("at")
    if at is None:
        return None
    if isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at):
        raise ConfigurationError(f"--replay: {path}, row {number}: at: must be a number of seconds")
    if before and at < before[-1]:
        raise ConfigurationError(
            f"--replay: {path}, row {number}: at: {at:g} is before the last row's {before[-1]:g}"
        )
    return float(at)
