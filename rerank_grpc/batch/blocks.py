"""Rows in blocks, which are scored and written whole; a block depends on the input alone, not on the time."""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rerank_grpc.batch.reading import DecodedRow
from rerank_grpc.batch.rows import BadRow, InputRow, is_flat, read_row
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.limits import MIB

MOST_CHARACTERS = 32 * MIB  # of a block; a row that is larger is a block of its own
MOST_PAIRS = 50_000  # of tiny texts: each takes a kilobyte, however short it is
MOST_ROWS = 100_000  # of a block, bad ones included
BATCHES = 24  # of the device, that a block fills at least: its last one is seldom full
CHARACTERS_PER_TOKEN = 4  # of English; other languages have fewer, so that their blocks fill more batches
SEEN_KIB = 32 * 1024  # of ids in memory, the others are in a file


class Size(NamedTuple):
    """The size of a block: it ends with the row that reaches one of these."""

    pairs: float = math.inf
    characters: int = MOST_CHARACTERS

    @classmethod
    def of(cls, pairs: int | None, max_batch_tokens: int) -> Size:
        """Takes a number of pairs, or else the text that fills the device's batches some times."""
        if pairs is not None:
            return cls(pairs)
        text = BATCHES * CHARACTERS_PER_TOKEN * max_batch_tokens
        return cls(MOST_PAIRS, min(text, MOST_CHARACTERS))


@dataclass(slots=True)
class Block:
    """Consecutive rows, counted from 0; `digest` tells whether they are those of an earlier start."""

    number: int
    rows: list[InputRow] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    pairs: int = 0
    characters: int = 0
    digest: str = ""
    position: float = 0.0  # of its end, as a share of the input

    def add(self, row: InputRow | BadRow) -> None:
        """Takes a row."""
        if isinstance(row, BadRow):
            self.bad.append(row)
        else:
            self.rows.append(row)
            self.pairs += len(row.documents)
            self.characters += row.characters

    def is_full(self, size: Size) -> bool:
        """Whether it holds as much as a block should."""
        return (
            self.pairs >= size.pairs
            or self.characters >= size.characters
            or len(self.rows) + len(self.bad) >= MOST_ROWS
        )


class SeenIds:
    """The ids so far, exact and in bounded memory: SQLite keeps them in a file that ends with the process."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        for setting in (f"cache_size = -{SEEN_KIB}", "journal_mode = OFF", "synchronous = OFF"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, row INTEGER) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def first(self, row: InputRow) -> int:
        """Returns the number of the row that had its id first: its own, or an earlier one's.

        Raises ConfigurationError where the disk is full.
        """
        given = str(row.id)
        try:
            taken = self._database.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (given, row.number))
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"the temporary file of ids cannot be written ({error}): "
                "let SQLITE_TMPDIR name another folder"
            ) from None
        if taken.rowcount:
            return row.number
        (number,) = self._database.execute("SELECT row FROM ids WHERE id = ?", (given,)).fetchone()
        return int(number)

    def close(self) -> None:
        """Frees the file."""
        self._database.close()


def blocks(decoded: Iterable[DecodedRow], *, size: Size, instruction: str = "") -> Iterator[Block]:
    """Cuts rows into blocks of a size; bad rows stay in theirs."""
    seen = SeenIds()
    try:
        block, digest, flat = Block(0), hashlib.sha256(), None
        for each in decoded:
            if flat is None:
                flat = is_flat(each.value)
            row = _checked(each, flat, instruction, seen)
            block.add(row)
            digest.update(_content(row))
            block.position = each.position
            if block.is_full(size):
                yield _ended(block, digest)
                block, digest = Block(block.number + 1), hashlib.sha256()
        if block.rows or block.bad:
            yield _ended(block, digest)
    finally:
        seen.close()


def _checked(each: DecodedRow, flat: bool | None, instruction: str, seen: SeenIds) -> InputRow | BadRow:
    if each.reason:
        return BadRow(each.number, None, each.reason)
    row = read_row(each.number, each.value, flat=flat, instruction=instruction)
    if isinstance(row, InputRow) and (first := seen.first(row)) != row.number:
        return BadRow(row.number, row.id, f"id: row {first:,} has the same")
    return row


def _content(row: InputRow | BadRow) -> bytes:
    return repr(tuple(row)).encode("utf-8", "surrogatepass")


def _ended(block: Block, digest: Any) -> Block:
    block.digest = digest.hexdigest()[:32]
    return block
