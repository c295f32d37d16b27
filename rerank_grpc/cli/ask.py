"""Calls a running server: rerank, models and health."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_grpc.cli import terminal
from rerank_grpc.cli.terminal import Ranked, Screen
from rerank_grpc.config.reading import read_client_settings
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.types import RerankResponse

if TYPE_CHECKING:
    from rerank_grpc.client import Client


@dataclass(frozen=True, slots=True)
class Line:
    """A document: one line of a file; lines count from 1."""

    text: str
    file: str
    number: int


def rerank(parsed: argparse.Namespace) -> int:
    """Ranks the lines of files; raises RerankError, or ConfigurationError for a file."""
    lines = [line for file in parsed.files for line in read_lines(file)]
    if not lines:
        raise ConfigurationError(f"{', '.join(parsed.files)}: no documents: every line is empty")
    with _connect(parsed) as client:
        response = client.rerank(
            parsed.query, [line.text for line in lines], model=parsed.model, top_n=parsed.top_n or None
        )
    if parsed.json:
        _print_json(_ranking_json(response, lines))
        return 0
    several = len(parsed.files) > 1
    rows = [
        Ranked(
            result.relevance_score,
            f"{lines[result.index].file}:{lines[result.index].number}"
            if several
            else str(lines[result.index].number),
            lines[result.index].text,
        )
        for result in response.results
    ]
    _print(terminal.ranking(rows, Screen.of(sys.stdout)))
    return 0


def models(parsed: argparse.Namespace) -> int:
    """Lists what a server serves; raises RerankError."""
    with _connect(parsed) as client:
        infos = tuple(client.list_models())
    if parsed.json:
        _print_json({"models": [_plain(asdict(info)) for info in infos]})
    else:
        _print(terminal.models(infos, Screen.of(sys.stdout)))
    return 0


def health(parsed: argparse.Namespace) -> int:
    """Tells whether a call for a model would be answered: 0 if so, else 1; raises RerankError."""
    with _connect(parsed) as client:
        answer = client.health(parsed.model)
    if parsed.json:
        _print_json(_plain(asdict(answer)))
    else:
        _print(terminal.health(answer))
    return 0 if answer.serving else 1


def read_lines(file: str) -> Iterable[Line]:
    """Reads a file's documents, one a line; "-" is stdin; raises ConfigurationError."""
    name = "stdin" if file == "-" else file
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"cannot read {name}: line {row} is not UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Line(line.rstrip("\r"), name, number)


def _connect(parsed: argparse.Namespace) -> Client:
    from rerank_grpc.client import Client

    settings = read_client_settings(parsed.flags)
    return Client(settings.target, token=settings.token, timeout=settings.timeout)


def _ranking_json(response: RerankResponse, lines: Sequence[Line]) -> dict[str, Any]:
    """Makes the JSON of a ranking: scores, where each document stood, what the call cost."""
    results = []
    for result in response.results:
        line = lines[result.index]
        results.append(
            {
                "index": result.index,
                "relevance_score": result.relevance_score,
                "logit": result.logit,
                "tokens": result.tokens,
                "truncated": result.truncated,
                "file": line.file,
                "line": line.number,
                "text": line.text,
            }
        )
    summary = response.summary._asdict() | {"usage": response.summary.usage._asdict()}
    return {**summary, "results": results}


def _plain(value: Any) -> Any:
    """Turns enums into their values, deeply, so that JSON can hold them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))
