"""`rerank-grpc recommend`: measures what this machine could serve."""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from rerank_grpc.cli.process import SERVER_EXTRA, needs
from rerank_grpc.cli.terminal import Screen, printable, table, warn
from rerank_grpc.config.allowance import memory_limit, processors, provide_threads
from rerank_grpc.config.reading import read_settings
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.files.obstacles import obstacle
from rerank_grpc.units import duration

if TYPE_CHECKING:
    from rerank_grpc.config.settings import ServerSettings
    from rerank_grpc.recommend.candidates import ModelCandidate
    from rerank_grpc.recommend.choice import Demands
    from rerank_grpc.recommend.survey import Survey

WIDTH = 100  # of the lines below the tables, at most
EXAMPLES = """\
examples:
  rerank-grpc recommend
  rerank-grpc recommend --languages zh,en --commercial --latency-ms 300
  rerank-grpc recommend embedded bge-reranker-v2-m3 --precision int8
  rerank-grpc recommend --candidates 10,30 --tokens 512 --json

Runs models for some seconds each: those on this machine with their weights, the
others of the catalogue in their shape with random weights, which are as fast and
rank nothing. Models of the same layers are measured once; those that are too slow, or
for which --minutes leaves no time, are estimated by their size. Prints documents/s,
p95 of a call, memory, and what is published of languages, licence and quality.
Ctrl-C prints what is done so far, and leaves no file. docs/choosing.md says more.
"""


def counts(text: str) -> tuple[int, ...]:
    """Reads numbers of candidates, with commas."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 0 < int(part) <= 1_000 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1 to 1,000")
    return tuple(sorted({int(part) for part in parts}))


def texts(text: str) -> tuple[str, ...]:
    """Reads words, with commas."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of words with commas")
    return parts


def tokens(text: str) -> int:
    """Reads a number of tokens."""
    if not text.isdecimal() or not 1 <= int(text) <= 8_192:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 8,192")
    return int(text)


def positive(text: str) -> float:
    """Reads a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


ARGUMENTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    (
        "models",
        {
            "metavar": "MODEL",
            "nargs": "*",
            "help": "embedded, a directory, a hub id or a name (default: embedded and the catalogue's)",
        },
    ),
    (
        "--candidates",
        {
            "metavar": "N,N",
            "type": counts,
            "default": (20, 50, 100),
            "help": "documents of a call (default: 20,50,100)",
        },
    ),
    ("--tokens", {"metavar": "N", "type": tokens, "default": 128, "help": "of a document (default: 128)"}),
    (
        "--seconds",
        {
            "metavar": "S",
            "type": positive,
            "default": 10.0,
            "help": "for which each model is measured (default: 10)",
        },
    ),
    (
        "--minutes",
        {
            "metavar": "M",
            "type": positive,
            "default": 6.0,
            "help": "after which no other model is begun (default: 6)",
        },
    ),
    ("--languages", {"metavar": "LIST", "type": texts, "help": "that a model must know, such as zh,en"}),
    ("--licence", {"metavar": "LIST", "type": texts, "help": "that it may have, such as MIT,Apache-2.0"}),
    ("--commercial", {"action": "store_true", "help": "only licences that allow commercial use"}),
    (
        "--latency-ms",
        {"metavar": "MS", "type": positive, "default": 300.0, "help": "of a call at p95 (default: 300)"},
    ),
    ("--json", {"action": "store_true", "help": "print JSON, for machines"}),
    ("--output", {"metavar": "DIR", "help": "a folder for recommend.json and a chart, recommend.png"}),
)


def run(parsed: argparse.Namespace) -> int:
    """Measures and prints: 0 if any model was measured, 1 if none was, 128 + a signal behind one.

    Raises ConfigurationError.
    """
    settings = read_settings(parsed.flags)
    provide_threads()  # the processes inherit it
    with needs("recommend", SERVER_EXTRA):
        from rerank_grpc.checkpoints.catalogue import read_catalogue
        from rerank_grpc.recommend.candidates import Constraints, find_candidates
        from rerank_grpc.recommend.choice import Demands
        from rerank_grpc.recommend.report import to_json
        from rerank_grpc.recommend.survey import Survey, SurveyOptions
    if parsed.output:
        with needs("recommend --output", 'pip install "rerank-grpc[eval]"'):
            import matplotlib  # noqa: F401  # drawn with at the end; missing here, it is told before any work
    logging.getLogger("rerank_grpc").addHandler(logging.NullHandler())
    found = find_candidates(parsed.models, read_catalogue(settings.catalogue), settings)
    constraints = Constraints(
        tuple(map(str.lower, parsed.languages or ())), parsed.licence or (), parsed.commercial
    )
    reasons = {each.name: constraints.refuse(each.known) for each in found}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    chosen = [each for each in found if not reasons[each.name]]
    options = SurveyOptions(parsed.candidates, parsed.tokens, parsed.seconds, parsed.minutes * 60)
    survey = Survey(settings, options)
    _survey(chosen, survey)
    demands = Demands(parsed.latency_ms / 1000, constraints.languages)
    machine = _machine(settings)
    value = to_json(survey, demands, machine, left_out)
    _tell(parsed, survey, demands, f"{machine['processor']}, {machine['processors']}", value)
    if survey.stopped_by:
        return 128 + survey.stopped_by
    return 0 if any(row.figures and not row.problem for row in survey.rows) else 1


def _survey(candidates: Sequence[ModelCandidate], survey: Survey) -> None:
    """Adds the candidates one after the other, until a signal stops it."""
    from tqdm import tqdm

    began = monotonic()
    before = {each: signal.signal(each, survey.stop) for each in (signal.SIGINT, signal.SIGTERM)}
    bar = tqdm(candidates, unit="model", file=sys.stderr, disable=None, leave=False, dynamic_ncols=True)
    try:
        for number, candidate in enumerate(bar, 1):
            name = printable(candidate.name)
            survey.watch = lambda step, name=name: bar.set_postfix_str(f"{name}: {step}")  # type: ignore[misc]
            row = survey.add(candidate)
            if bar.disable:
                how, of = printable(row.problem or row.basis.value), len(candidates)
                left = (monotonic() - began) / number * (of - number)
                rest = f", about {duration(left)} left" if number < of else ""
                print(f"{number} of {of}: {name}: {how}{rest}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        pass  # the survey knows by which signal
    finally:
        bar.close()
        for each, handler in before.items():
            signal.signal(each, handler)


def _tell(
    parsed: argparse.Namespace, survey: Survey, demands: Demands, machine: str, value: Mapping[str, Any]
) -> None:
    if parsed.output:
        _write(Path(parsed.output), value, survey, demands)
    if parsed.json:
        print(json.dumps(value, ensure_ascii=False, indent=1))
        return
    for line in _lines(survey, demands, machine, value["left_out"], Screen.of(sys.stdout)):
        print(line)


def _lines(
    survey: Survey, demands: Demands, machine: str, left_out: Mapping[str, str], screen: Screen
) -> Iterator[str]:
    from rerank_grpc.recommend import report
    from rerank_grpc.recommend.choice import advise, ordered

    rows = ordered(survey.rows, demands)
    benchmarks = report.benchmarks_of(rows, demands)
    yield from table(*report.measured_table(rows, survey.options), screen)
    yield ""
    yield from table(*report.published_table(rows, benchmarks), screen)
    yield ""
    said = [
        *report.sources_of(rows, benchmarks),
        *report.notes(rows, machine),
        *(f"not measured: {text}" for text in report.unmeasured(rows)),
    ]
    if left_out:
        said.append(f"left out by --languages, --licence or --commercial: {', '.join(left_out)}")
    for text in said:
        for line in _wrapped(text, screen):
            yield screen.paint(line, "dim")
    yield ""
    for text in advise(rows, demands):
        yield from (screen.paint(line, "bold") for line in _wrapped(text, screen))


def _wrapped(text: str, screen: Screen) -> Sequence[str]:
    width = min(screen.width or WIDTH, WIDTH)
    return textwrap.wrap(
        printable(text), width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _machine(settings: ServerSettings) -> dict[str, Any]:
    from rerank_grpc.kernels.device import choose_device
    from rerank_grpc.registry.budget import device_name

    limit = memory_limit()
    return {
        "processor": device_name(choose_device(settings.device)),
        "processors": str(processors()),
        "memory_bytes": limit.most if limit else None,
    }


def _write(folder: Path, value: Mapping[str, Any], survey: Survey, demands: Demands) -> None:
    from rerank_grpc.recommend.chart import draw

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recommend.json").write_text(
            json.dumps(value, ensure_ascii=False, indent=1) + "\n", "utf-8"
        )
        drawn = draw(survey.rows, demands, folder / "recommend.png")
    except OSError as error:
        raise ConfigurationError(
            f"--output: {folder}: {obstacle(folder, error, writing=True)}: name another folder"
        ) from None
    if not drawn:
        warn("no chart: no model was measured of which the catalogue has a figure of the benchmark")
