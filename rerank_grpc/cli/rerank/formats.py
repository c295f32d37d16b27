"""Reads documents out of lines, JSON lines, CSV, and whole files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from rerank_grpc.cli.rerank.lines import decoded_lines, name_of
from rerank_grpc.cli.rerank.records import DocumentRecord, ReadingOptions, problem_of
from rerank_grpc.cli.rerank.whole import read_whole
from rerank_grpc.errors import ConfigurationError

_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def read_lines(path: str, options: ReadingOptions) -> Iterator[DocumentRecord]:
    """Reads a document from each line that is not blank; raises ConfigurationError."""
    for number, text in decoded_lines(path, options):
        if text.strip():
            record = DocumentRecord(text.removesuffix("\n").rstrip("\r"), name_of(path), number)
            yield from _checked(record, options)


def read_jsonl(path: str, options: ReadingOptions) -> Iterator[DocumentRecord]:
    """Reads a document from the object on each line that is not blank; raises ConfigurationError."""
    for number, line in decoded_lines(path, options):
        if not (text := line.strip()):
            continue
        place = f"{name_of(path)}:{number}"
        try:
            value = _JSON.decode(text)
        except json.JSONDecodeError as error:
            options.bad(f"{place}: is not JSON ({error.msg} at column {error.colno}): a line holds an object")
            continue
        except (ValueError, RecursionError) as error:
            options.bad(f"{place}: is not JSON ({error}): a line holds an object")
            continue
        if not isinstance(value, dict):
            options.bad(f'{place}: is {_kind(value)}, not an object with "{options.text_field}"')
            continue
        yield from _record_of(value, name_of(path), number, options)


def read_csv(path: str, options: ReadingOptions) -> Iterator[DocumentRecord]:
    """Reads a document from each row below the header; raises ConfigurationError.

    Rows are told by the line that they begin on, because a cell in quotes may hold ends of lines.
    """
    lines = (text for _, text in decoded_lines(path, options, skip=False))
    rows = csv.reader(lines, strict=True)
    header: Sequence[str] | None = None
    while True:
        number = rows.line_num + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise ConfigurationError(f"{name_of(path)}:{number}: {_broken(error)}") from None
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = _columns(cells, path, options)
        elif len(cells) != len(header):
            options.bad(
                f"{name_of(path)}:{number}: has {len(cells)} cells, where the header has {len(header)}"
            )
        else:
            row = dict(zip(header, cells, strict=True))
            yield from _record_of(row, name_of(path), number, options)


FORMATS: Mapping[str, Callable[[str, ReadingOptions], Iterator[DocumentRecord]]] = {
    "lines": read_lines,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "file": read_whole,
}
WITH_FIELDS = ("jsonl", "csv")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)  # made once: json.loads would make one a line


def _checked(record: DocumentRecord, options: ReadingOptions) -> Iterator[DocumentRecord]:
    if problem := problem_of(record.text):
        options.bad(f"{record.place}: {problem}")
    else:
        yield record


def _record_of(
    value: Mapping[str, Any], file: str, number: int, options: ReadingOptions
) -> Iterator[DocumentRecord]:
    place, name = f"{file}:{number}", options.text_field
    if name not in value:
        options.bad(f'{place}: has no field "{name}" ({_named(value)}): --text-field names another')
        return
    text = value[name]
    if not isinstance(text, str):
        options.bad(f'{place}: "{name}" is {_kind(text)}, not a string')
        return
    id_ = value.get(options.id_field, "") if options.id_field else ""
    if options.id_field and (not isinstance(id_, str | int) or isinstance(id_, bool)):
        options.bad(f'{place}: "{options.id_field}" is {_kind(id_)}, not a string or a whole number')
        return
    others = {key: each for key, each in value.items() if key != name}
    yield from _checked(DocumentRecord(text, file, number, str(id_), others), options)


def _columns(cells: Sequence[str], path: str, options: ReadingOptions) -> Sequence[str]:
    """Checks the header of a CSV; raises ConfigurationError where a column is missing or not the only one."""
    for name in filter(None, (options.text_field, options.id_field)):
        if cells.count(name) > 1:
            raise ConfigurationError(f'{name_of(path)}:1: has {cells.count(name)} columns "{name}"')
        if name in cells:
            continue
        for separator, word in _SEPARATORS.items():
            if len(cells) == 1 and name in cells[0].split(separator):
                raise ConfigurationError(
                    f"{name_of(path)}:1: its cells are separated by {word}, where commas are expected"
                )
        option = "--text-field" if name == options.text_field else "--id-field"
        raise ConfigurationError(
            f'{name_of(path)}:1: has no column "{name}" ({_named(cells)}): {option} names another'
        )
    return cells


def _named(names: Mapping[str, Any] | Sequence[str]) -> str:
    shown = [f'"{name[:40]}"' for name in list(names)[:6]]
    return f"it has {', '.join(shown)}{', …' if len(names) > 6 else ''}" if shown else "it is empty"


def _kind(value: object) -> str:
    return "a string" if isinstance(value, str) else _KINDS.get(type(value), "null")


def _broken(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end" in text:
        return "a quote that is opened in this row is not closed: double a quote that belongs to the text"
    if "field limit" in text:
        return f"a cell has more than {csv.field_size_limit():,} characters, or its quote is not closed"
    return f"is not CSV ({text}): double a quote that belongs to the text"
