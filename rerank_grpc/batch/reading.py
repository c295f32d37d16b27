"""Reads the rows of a file one after another: JSON lines, plain or gzipped, or Parquet."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rerank_grpc.batch.rows import FIELDS
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.files.obstacles import obstacle
from rerank_grpc.limits import MIB

LONGEST_LINE = 256 * MIB  # a longer one is a bad row: a file without line ends must not fill the memory
PARQUET_ROWS = 64  # are decoded at once
HEAD_BYTES = 1 << 16


class DecodedRow(NamedTuple):
    """One row as it stands in the file: a decoded value, or the reason why there is none."""

    number: int
    value: object
    reason: str
    position: float  # of its end, as a share of the file


@dataclass(frozen=True, slots=True)
class Input:
    """A file of rows; `form` is jsonl or parquet."""

    path: Path
    form: str
    gzipped: bool
    size: int
    head: str  # a digest of its first bytes

    @classmethod
    def of(cls, path: Path) -> Input:
        """Looks at a file; raises ConfigurationError if it cannot be read, or has no known ending."""
        form = form_of(path)
        if form is None:
            raise ConfigurationError(f"--input: {path} ends in none of .parquet, .jsonl, .jsonl.gz")
        try:
            if path.exists() and not path.is_file() and not path.is_dir():
                raise ConfigurationError(
                    f"--input: {path} is no file: write it to one, which another start can read again"
                )
            with path.open("rb") as file:
                head = hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
            size = path.stat().st_size
        except OSError as error:
            raise ConfigurationError(f"--input: {path}: {obstacle(path, error)}") from None
        return cls(path, form, path.name.lower().endswith(".gz"), size, head)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Facts that tell it from another file at once; the digests of blocks tell the rest."""
        return {"bytes": self.size, "head": self.head}

    def rows(self) -> Iterator[DecodedRow]:
        """Yields each row; raises ConfigurationError where the file is damaged."""
        return self._parquet_rows() if self.form == "parquet" else self._lines()

    def has_whole_ids(self) -> bool:
        """Whether all ids are whole numbers: those of a Parquet column, or the rows' numbers."""
        if self.form != "parquet":
            return False
        import pyarrow as pa

        with self._opened() as file:
            schema = file.schema_arrow
            place = schema.get_field_index("id")
            return place < 0 or bool(pa.types.is_integer(schema.field(place).type))

    def _lines(self) -> Iterator[DecodedRow]:
        number = 0
        try:
            with self.path.open("rb") as raw:
                lines = gzip.GzipFile(fileobj=raw) if self.gzipped else raw
                for number, (line, reason) in enumerate(_limited_lines(lines), 1):
                    position = min(1.0, raw.tell() / max(1, self.size))
                    if reason or line.strip():
                        yield _decoded(number, line, reason, position)
        except (OSError, EOFError, zlib.error) as error:
            text = "ends in the middle" if isinstance(error, EOFError) else f"cannot be read ({error})"
            raise ConfigurationError(f"--input: {self.path} {text}, after row {number:,}") from None

    def _opened(self) -> Any:
        """Opens a Parquet file that is read page by page: a row group may be larger than the memory."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self.path, pre_buffer=False, buffer_size=MIB)
        except (OSError, pa.ArrowException) as error:
            raise ConfigurationError(
                f"--input: {self.path} is no readable Parquet file: {_first_line(error)}"
            ) from None

    def _parquet_rows(self) -> Iterator[DecodedRow]:
        import pyarrow as pa

        number = 0
        with self._opened() as file:
            names = file.schema_arrow.names
            columns = [name for name in FIELDS if name in names]
            if "query" not in columns or not {"documents", "document"} & set(columns):
                raise ConfigurationError(
                    f"--input: {self.path} has the columns {', '.join(names)}: "
                    "it needs query, and documents or document"
                )
            if len(set(columns)) < len([name for name in names if name in FIELDS]):
                raise ConfigurationError(f"--input: {self.path} has two columns of one name: rename one")
            total = max(1, file.metadata.num_rows)
            try:
                for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
                    for value, reason in _values(batch):
                        number += 1
                        yield DecodedRow(number, value, reason, number / total)
            except (OSError, pa.ArrowException) as error:
                raise ConfigurationError(
                    f"--input: {self.path} cannot be read after row {number:,}: {_first_line(error)}"
                ) from None


def form_of(path: Path) -> str | None:
    """Tells the form that a file's name says: jsonl, parquet or None."""
    name = path.name.lower()
    if name.endswith((".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")):
        return "jsonl"
    return "parquet" if name.endswith((".parquet", ".pq")) else None


def _limited_lines(file: BinaryIO | gzip.GzipFile) -> Iterator[tuple[bytes, str]]:
    """Yields each line, or the reason why one is left out."""
    while line := file.readline(LONGEST_LINE):
        if len(line) < LONGEST_LINE or line.endswith(b"\n"):
            yield line, ""
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
        yield b"", f"is longer than {LONGEST_LINE >> 20} MiB"


def _decoded(number: int, line: bytes, reason: str, position: float) -> DecodedRow:
    if reason:
        return DecodedRow(number, None, reason, position)
    try:
        return DecodedRow(
            number, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")), "", position
        )
    except UnicodeDecodeError as error:
        return DecodedRow(number, None, f"is not UTF-8 at byte {error.start:,}", position)
    except json.JSONDecodeError as error:
        return DecodedRow(number, None, f"is not JSON: {error.msg} at character {error.pos + 1:,}", position)
    except (RecursionError, ValueError):
        return DecodedRow(
            number, None, "is not JSON that can be read: too deep, or a number too long", position
        )


def _values(batch: Any) -> Iterator[tuple[object, str]]:
    """Yields each row of a Parquet batch, or the reason why it cannot be decoded."""
    try:
        yield from [(value, "") for value in batch.to_pylist()]
    except UnicodeDecodeError:
        for place in range(len(batch)):
            try:
                (value,) = batch.slice(place, 1).to_pylist()
                yield value, ""
            except UnicodeDecodeError as error:
                yield None, f"is not UTF-8 at byte {error.start:,} of a text"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
