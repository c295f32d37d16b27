"""`rerank-grpc rerank`: reads documents, has a server score them, and prints them best first."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rerank_grpc.cli import terminal
from rerank_grpc.cli.ask import connect
from rerank_grpc.cli.rerank.progress import ProgressLine
from rerank_grpc.cli.rerank.records import DocumentRecord, ReadingOptions, refuse
from rerank_grpc.cli.rerank.sources import DocumentSource, check_fields, read, size_of, sources_of
from rerank_grpc.cli.rerank.whole import FolderSearch, told
from rerank_grpc.cli.terminal import Row, Screen
from rerank_grpc.config.options import OptionError
from rerank_grpc.errors import ConfigurationError, InvalidRequest
from rerank_grpc.limits import DOCUMENT_TEXT, LIMITS
from rerank_grpc.types import RerankResponse, ScoredDocument

_RESULT_FIELDS = ("index", "relevance_score", "logit", "tokens", "truncated")
_MOST_TOLD = 10  # documents that are left out, each with its reason


def run(parsed: argparse.Namespace) -> int:
    """Ranks the documents of files; raises RerankError, or ConfigurationError for a file."""
    if parsed.json and parsed.jsonl:
        raise OptionError("--json prints one object, --jsonl one for each result: choose one of them")
    omitted = Omitted() if parsed.skip_bad else None
    search = FolderSearch(ReadingOptions(bad=omitted or refuse))
    sources = sources_of(parsed.files, parsed.format or "", search)
    check_fields(sources, [name for name in ("--text-field", "--id-field") if _field(parsed, name)])
    if search.left:
        terminal.warn(told(search.left))
    progress = ProgressLine(sys.stderr, size_of(sources))
    records = _read(parsed, sources, progress, omitted)
    response = _ask(parsed, records, progress)
    ranked = [(result, records[result.index]) for result in response.results]
    if parsed.json or parsed.jsonl:
        _print_json(response, map(_json_of, ranked), lines=parsed.jsonl)
        return 0
    several = len(sources) > 1
    rows = [
        Row(
            result.relevance_score,
            _short(record, several=several),
            record.text,
            result.calibrated_score,
        )
        for result, record in ranked
    ]
    for line in terminal.ranking(rows, Screen.of(sys.stdout)):
        print(line)
    return 0


class Omitted:
    """A listener for bad documents: each of the first ones is told, and then how many there were."""

    def __init__(self) -> None:
        self.count = 0
        self.progress: ProgressLine | None = None

    def __call__(self, problem: str) -> None:
        """Hears of a document."""
        self.count += 1
        if self.count <= _MOST_TOLD:
            if self.progress is not None:
                self.progress.clear()
            terminal.warn(f"left out {problem}")

    def end(self) -> None:
        """Tells how many there were, where not all were told."""
        if self.count > _MOST_TOLD:
            terminal.warn(f"left out {self.count:,} documents, of which the first {_MOST_TOLD} are told")


def _field(parsed: argparse.Namespace, option: str) -> str:
    return getattr(parsed, option[2:].replace("-", "_")) or ""


def _read(
    parsed: argparse.Namespace,
    sources: Sequence[DocumentSource],
    progress: ProgressLine,
    omitted: Omitted | None,
) -> list[DocumentRecord]:
    """Reads all documents; raises ConfigurationError where there are none."""
    if omitted is not None:
        omitted.progress = progress
    options = ReadingOptions(
        _field(parsed, "--text-field") or "text",
        _field(parsed, "--id-field"),
        omitted or refuse,
        progress.advance,
    )
    records = []
    try:
        for record in read(sources, options):
            records.append(record)
            progress.documents += 1
    finally:
        progress.clear()
    if omitted is not None:
        omitted.end()
    if not records:
        reason = "all were left out" if omitted is not None and omitted.count else "every line is empty"
        raise ConfigurationError(f"{', '.join(parsed.files)}: no documents: {reason}")
    return records


def _ask(
    parsed: argparse.Namespace, records: Sequence[DocumentRecord], progress: ProgressLine
) -> RerankResponse:
    """Has a server score the documents; names the file and the line of one that it refuses."""
    calls = -(-len(records) // LIMITS.documents)
    with connect(parsed, calls=calls) as client, progress.scoring():
        try:
            return client.rerank(
                parsed.query,
                [record.text for record in records],
                model=parsed.model,
                top_n=parsed.top_n or None,
                instruction=parsed.instruction,
                min_relevance_score=parsed.min_score,
                min_calibrated_score=parsed.min_calibrated_score,
                priority=parsed.priority,
                progress=progress.score,
            )
        except InvalidRequest as error:
            for violation in error.violations:
                if match := DOCUMENT_TEXT.fullmatch(violation.field):
                    place = records[int(match[1])].place
                    raise ConfigurationError(f"{place}: {violation.description}") from None
            raise


def _short(record: DocumentRecord, *, several: bool) -> str:
    """Names a document in a table, by its id or its place; without the file where there is only one."""
    if record.id or several or record.line is None:
        return record.id or record.place
    return str(record.line)


def _json_of(ranked: tuple[ScoredDocument, DocumentRecord]) -> dict[str, Any]:
    result, record = ranked
    value = {name: getattr(result, name) for name in _RESULT_FIELDS}
    if result.calibrated_score is not None:
        value["calibrated_score"] = result.calibrated_score
    value |= {"file": record.file, "line": record.line, "text": record.text}
    if record.id:
        value["id"] = record.id
    if record.fields is not None:
        value["fields"] = record.fields
    return value


def _print_json(response: RerankResponse, results: Iterable[Mapping[str, Any]], *, lines: bool) -> None:
    if lines:
        for result in results:
            print(json.dumps(result, ensure_ascii=False))
        return
    summary = response.summary
    value = {**summary._asdict(), "usage": summary.usage._asdict(), "results": list(results)}
    print(json.dumps(value, ensure_ascii=False, indent=2))
