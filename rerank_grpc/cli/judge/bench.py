"""`rerank-grpc bench`: puts load on a running server, and measures; its arguments."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rerank_grpc.limits import LIMITS
from rerank_grpc.loadtest.plan import ARRIVALS
from rerank_grpc.loadtest.slo import Objective

EXAMPLES = """\
examples:
  rerank-grpc bench --rate 20
  rerank-grpc bench --rate 5..50 --documents 20..100 --output results
  rerank-grpc bench --rate 1..200 --slo p99=500ms
  rerank-grpc bench --rest --concurrency 8 --json
  rerank-grpc bench --replay calls.jsonl

An open loop: calls are sent at times that are planned beforehand, whatever the
answers do, and a latency counts from the planned time. --concurrency is a closed
loop. --rate A..B takes --steps rates, or looks for the highest one that meets
--slo: p99=500ms, p50=0.2s, errors<1%, with commas between; a call that fails is
late. A row of --replay is {"query": "...", "documents": ["..."], "at": SECONDS};
without --rate the calls are sent at those times. Texts are made of words, and no
pair is sent twice. Exits 0; 3 where --slo is missed; 1 where nothing is answered,
the server goes away, the driver cannot send so much, or a search has no verdict.
"""

LARGEST_RATE = 100_000.0
MOST_WORDS = 10_000


def _span(text: str, most: int) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)(?:\.\.([0-9]+))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no N or N..M from 1 to {most:,}")
    return low, high


def documents(text: str) -> tuple[int, int]:
    """Reads how many documents a call has."""
    return _span(text, LIMITS.documents)


def words(text: str) -> tuple[int, int]:
    """Reads how many words a document has."""
    return _span(text, MOST_WORDS)


def rates(text: str) -> tuple[float, ...]:
    """Reads one rate, or the lowest and the highest."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(?:\.\.([0-9]+(?:\.[0-9]+)?))?", text)
    found = tuple(float(each) for each in match.groups() if each) if match else ()
    if (
        not found
        or not 0 < found[0] <= found[-1] <= LARGEST_RATE
        or (len(found) == 2 and found[0] == found[1])
    ):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no calls a second, as 20, 0.5 or 5..50, up to {LARGEST_RATE:,.0f}"
        )
    return found


def _number(least: float, most: float, what: str, *, whole: bool = False) -> Callable[[str], Any]:
    def read(text: str) -> float:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what} from {least:g} to {most:g}")
        return value

    return read


def objective(text: str) -> Objective:
    """Reads the limits that a rate must meet."""
    try:
        return Objective.of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _argument(name: str, metavar: str, help: str, **keywords: Any) -> tuple[str, Mapping[str, Any]]:
    return name, {"metavar": metavar, "help": help, **keywords}


ARGUMENTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    _argument("--rate", "N|A..B", "calls a second, of an open loop", type=rates, default=()),
    _argument(
        "--concurrency",
        "N",
        "callers that each wait for their answer, in place of --rate",
        type=_number(1, 10_000, "whole number", whole=True),
    ),
    _argument(
        "--rest",
        "URL",
        "call JSON over HTTP; without a URL at port 6006 of the target's host",
        nargs="?",
        const="",
    ),
    _argument(
        "--documents", "N|N..M", "documents of a call (default: 20..100)", type=documents, default=(20, 100)
    ),
    _argument("--words", "N|N..M", "words of a document (default: 50..200)", type=words, default=(50, 200)),
    _argument("--replay", "FILE", "send recorded calls: .jsonl or .jsonl.gz"),
    _argument(
        "--speed",
        "X",
        "how many times as fast recorded times go (default: 1)",
        type=_number(0.001, 1_000, "number", whole=False),
        default=1.0,
    ),
    _argument(
        "--arrivals",
        "|".join(ARRIVALS),
        "when the calls of a rate are sent (default: poisson)",
        choices=ARRIVALS,
        default=ARRIVALS[0],
    ),
    _argument(
        "--duration",
        "SECONDS",
        "the measured time of a step (default: 30, or the whole recording)",
        type=_number(0.1, 86_400, "seconds"),
    ),
    _argument(
        "--warm-up",
        "SECONDS",
        "the time before it, which does not count (default: 5)",
        type=_number(0, 3_600, "seconds"),
        default=5.0,
    ),
    _argument(
        "--steps",
        "N",
        "rates of A..B without --slo (default: 6)",
        type=_number(2, 100, "whole number", whole=True),
        default=6,
    ),
    _argument(
        "--slo", "LIMITS", "what a rate must meet, such as p99=500ms", type=objective, default=Objective()
    ),
    _argument("--model", "NAME", "the model to ask (default: the server's)"),
    _argument(
        "--seed",
        "N",
        "of texts and times (default: another one each time, which is told)",
        type=_number(0, 1 << 53, "whole number", whole=True),
    ),
    _argument("--output", "DIR", "write bench.json, and a chart as bench.png", type=Path),
    ("--json", {"action": "store_true", "help": "print JSON, for machines"}),
    ("--yes", {"action": "store_true", "help": "load another machine than this one without a question"}),
)


def run(parsed: argparse.Namespace) -> int:
    """Measures; see :func:`rerank_grpc.cli.judge.bench_run.run`."""
    from rerank_grpc.cli.judge import bench_run

    return bench_run.run(parsed)
