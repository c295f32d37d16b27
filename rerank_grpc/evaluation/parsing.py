"""Reads the files of a judged collection line by line: texts, judgements and a run.

Formats: BEIR (https://github.com/beir-cellar/beir: JSON lines of "_id", "title", "text"; judgements in three
columns below a header) and TREC (https://github.com/usnistgov/trec_eval: judgements in four columns, a run in
six). A name that ends in .gz is inflated.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rerank_grpc.errors import ConfigurationError, one_line
from rerank_grpc.evaluation.problems import Problems
from rerank_grpc.files.lines import read_lines
from rerank_grpc.files.obstacles import obstacle
from rerank_grpc.limits import LIMITS

_JSON_SUFFIXES, _TSV_SUFFIXES = (".jsonl", ".ndjson", ".json"), (".tsv", ".txt")
_SWAPPED = "are --qrels and --run swapped?"
_BEIR_HEADER = ("query-id", "corpus-id", "score")


class Judgement(NamedTuple):
    """A line of judgements: a document's relevance to a query; above 0 is relevant."""

    line: int
    query: str
    document: str
    relevance: int


class Candidate(NamedTuple):
    """A line of a run: a document that a query has found, and its score there."""

    line: int
    query: str
    document: str
    score: float


def read_texts(path: Path, problems: Problems, *, titled: bool = False) -> dict[str, str]:
    """Reads texts by their ids: JSON lines of "_id" and "text", or lines of id, tab, text.

    If `titled`, a "title" goes before the text, with a space between them, as BEIR has it. A text has as many
    characters as the service takes at most. Raises ConfigurationError where no line can be used.
    """
    parse = _parser(path)
    texts: dict[str, str] = {}
    long = 0
    for number, line in lines_of(path, problems):
        if not line.strip():
            continue
        found = parse(line)
        if isinstance(found, str):
            problems.add(str(path), number, found)
            continue
        name, title, text = found
        if name in texts:
            problems.add(str(path), number, "an id that an earlier line has, whose text stays", repr(name))
            continue
        whole = " ".join(filter(None, (title.strip(), text.strip()))) if titled else text.strip()
        long += len(whole) > LIMITS.characters
        texts[name] = whole[: LIMITS.characters]
    if not texts:
        raise ConfigurationError(_nothing(path, problems, 'JSON lines of "_id" and "text", or id, tab, text'))
    if long:
        most = f"{LIMITS.characters:,}"
        problems.note(f"{path}: {long:,} texts have more than {most} characters: their first {most} count")
    return texts


def read_judgements(path: Path, problems: Problems) -> list[Judgement]:
    """Reads judgements: query, 0, document, relevance (TREC); or query, document, relevance (BEIR).

    Raises ConfigurationError where no line can be used.
    """
    expected = "expected query, 0, document, relevance (TREC) or query, document, score by tabs (BEIR)"
    found = []
    for number, line in lines_of(path, problems):
        columns = _columns(line, 3, 4)
        if not columns or (len(columns) == 3 and tuple(columns) == _BEIR_HEADER):
            continue
        if len(columns) == 6:
            problems.add(str(path), number, f"six columns: this is a run: {_SWAPPED}")
            continue
        if len(columns) not in (3, 4):
            problems.add(str(path), number, f"a wrong number of columns, {expected}", f"{len(columns)}")
            continue
        relevance = _whole(columns[-1])
        if relevance is None:
            kind = "a relevance that is no whole number"
            problems.add(str(path), number, kind, repr(columns[-1]))
            continue
        found.append(Judgement(number, columns[0], columns[-2], relevance))
    if not found:
        raise ConfigurationError(_nothing(path, problems, expected.removeprefix("expected ")))
    return found


def read_run(path: Path, problems: Problems) -> list[Candidate]:
    """Reads a run in TREC's form: query, Q0, document, rank, score, tag.

    Raises ConfigurationError where no line can be used.
    """
    expected = "query, Q0, document, rank, score, tag"
    found = []
    for number, line in lines_of(path, problems):
        columns = _columns(line, 6)
        if not columns:
            continue
        if (len(columns) == 4 or line.count("\t") == 2) and _whole(columns[-1]) is not None:
            kind = f"the columns of a judgement, not of a run: {_SWAPPED}"
            problems.add(str(path), number, kind)
            continue
        if len(columns) != 6:
            kind = f"a wrong number of columns, expected {expected}"
            problems.add(str(path), number, kind, f"{len(columns)}")
            continue
        score = _number(columns[4])
        if score is None:
            problems.add(str(path), number, "a score that is no finite number", repr(columns[4]))
            continue
        found.append(Candidate(number, columns[0], columns[2], score))
    if not found:
        raise ConfigurationError(_nothing(path, problems, expected))
    return found


def lines_of(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Yields the lines of a file with their numbers, without their ends; one that is no text is left out.

    Raises ConfigurationError for a file that cannot be read.
    """
    number = 0
    try:
        with _opened(path) as stream:
            for number, text, _, problem in read_lines(stream, str(path)):
                if problem:
                    problems.add(str(path), number, problem)
                else:
                    yield number, text.rstrip("\r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = "ends in the middle" if isinstance(error, EOFError) else f"is no readable gzip ({error})"
        raise ConfigurationError(f"{path}: {what}, after line {number:,}") from None
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {obstacle(path, error)}") from None


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _columns(line: str, *counts: int) -> list[str]:
    """Splits a line by tabs where that gives a right number of columns, so that ids may hold spaces."""
    by_tabs = [each.strip() for each in line.split("\t")]
    return by_tabs if len(by_tabs) in counts and all(by_tabs) else line.split()


def _parser(path: Path) -> Callable[[str], tuple[str, str, str] | str]:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    last = suffixes[-1] if suffixes else ""
    if last in _JSON_SUFFIXES:
        return _from_json
    if last in _TSV_SUFFIXES:
        return _from_tsv
    raise ConfigurationError(f"{path}: the name ends in none of .jsonl, .tsv, .jsonl.gz, .tsv.gz")


def _from_json(line: str) -> tuple[str, str, str] | str:
    """Reads id, title and text; returns what is wrong as a text alone."""
    try:
        value: Any = json.loads(line)
    except ValueError:
        return "no JSON object"
    except RecursionError:
        return "JSON that is nested too deeply"
    if not isinstance(value, dict):
        return 'no JSON object, expected {"_id": …, "text": …}'
    name, text, title = value.get("_id", value.get("id")), value.get("text"), value.get("title") or ""
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not name.strip():
        return 'no "_id", expected a text that is not empty'
    if not isinstance(text, str) or not isinstance(title, str):
        return 'no "text", expected a text'
    return _checked(name, title, text)


def _from_tsv(line: str) -> tuple[str, str, str] | str:
    columns = line.split("\t")
    if len(columns) != 2 or not columns[0].strip():
        return "a wrong number of columns, expected id, tab, text"
    return _checked(columns[0], "", columns[1])


def _checked(name: str, title: str, text: str) -> tuple[str, str, str] | str:
    if not (title.strip() or text.strip()):
        return "an empty text"
    try:
        f"{name}{title}{text}".encode()
    except UnicodeEncodeError:
        return "half a surrogate pair, which UTF-8 cannot hold"
    return name.strip(), title, text


def _whole(text: str) -> int | None:
    value = _number(text)
    return int(value) if value is not None and value.is_integer() and abs(value) < 1 << 31 else None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _nothing(path: Path, problems: Problems, expected: str) -> str:
    mine = [line for line in problems.told if line.startswith(f"{path}:")]
    if not mine:
        return f"{path}: is empty, expected {expected}"
    # The first line says itself what was expected, or what else the file may be.
    says = "expected" in mine[0] or _SWAPPED in mine[0]
    return one_line(f"{path}: no line can be used{'' if says else f', expected {expected}'}; {mine[0]}")
