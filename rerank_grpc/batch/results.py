"""Results of rows, and the parts of an output that hold them: JSON lines or Parquet."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

GROUP_ROWS = 50_000  # of a row group where parts become one Parquet file


class Scored(NamedTuple):
    """One result: the document's place in its row, its scores as float32 has them, its own id."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    relevance_score: float
    logit: float
    id: str


class ScoredRow(NamedTuple):
    """A row's results by descending relevance, ties in the row's order; of a flat pair one."""

    number: int
    id: str | int
    flat: bool
    results: list[Scored]


def encode(rows: Sequence[ScoredRow], form: str, *, whole_ids: bool) -> bytes:
    """Writes rows in a form, jsonl or parquet; b"" without rows.

    A Parquet column has one type: ids are texts there, unless all of them are `whole_ids`.
    """
    if not rows:
        return b""
    if form == "jsonl":
        return "".join([json.dumps(_object(row), ensure_ascii=False) + "\n" for row in rows]).encode()
    import pyarrow as pa
    import pyarrow.parquet as pq

    objects = [_object(row, nulls=True) for row in rows]
    if not whole_ids:
        objects = [each | {"id": str(each["id"])} for each in objects]
    stream = io.BytesIO()
    table = pa.Table.from_pylist(objects, schema(flat=rows[0].flat, whole_ids=whole_ids))
    pq.write_table(table, stream)
    return stream.getvalue()


def schema(*, flat: bool, whole_ids: bool) -> Any:
    """Makes the schema of a Parquet output."""
    import pyarrow as pa

    scores = [("relevance_score", pa.float32()), ("logit", pa.float32())]
    own = ("id", pa.int64() if whole_ids else pa.string())
    if flat:
        return pa.schema([own, *scores])
    result = pa.struct([("index", pa.int32()), *scores, ("id", pa.string())])
    return pa.schema([own, ("results", pa.list_(result))])


def join(parts: Iterable[Path], form: str, file: BinaryIO, *, whole_ids: bool) -> None:
    """Writes the rows of parts into one file, in the parts' order."""
    if form == "jsonl":
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, tables, held = None, [], 0
    for part in parts:
        table = pq.read_table(part, partitioning=None)
        writer = writer or pq.ParquetWriter(file, table.schema)
        tables.append(table)
        held += len(table)
        if held >= GROUP_ROWS:
            writer.write_table(pa.concat_tables(tables), GROUP_ROWS)
            tables, held = [], 0
    writer = writer or pq.ParquetWriter(file, schema(flat=False, whole_ids=whole_ids))
    if tables:
        writer.write_table(pa.concat_tables(tables), GROUP_ROWS)
    writer.close()


def _object(row: ScoredRow, *, nulls: bool = False) -> dict[str, Any]:
    """Makes a row's object; a document's id is in it where there is one, or as null."""
    if row.flat:
        (result,) = row.results
        return {"id": row.id, "relevance_score": result.relevance_score, "logit": result.logit}
    return {"id": row.id, "results": [_result(result, nulls) for result in row.results]}


def _result(result: Scored, nulls: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "index": result.index,
        "relevance_score": result.relevance_score,
        "logit": result.logit,
    }
    if result.id or nulls:
        found["id"] = result.id or None
    return found
