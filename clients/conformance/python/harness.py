"""What every client's script uses: the call to make, the answer to expect, a line for each check."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version

URL = os.environ["CONFORMANCE_URL"]
TARGET = os.environ["CONFORMANCE_TARGET"]  # host:port of gRPC
TOKEN = os.environ["CONFORMANCE_TOKEN"]
QUERY = os.environ["CONFORMANCE_QUERY"]
DOCUMENTS: list[str] = json.loads(os.environ["CONFORMANCE_DOCUMENTS"])
# By index, as REST gives them to a plain HTTP call.
SCORES: list[float] = json.loads(os.environ["CONFORMANCE_SCORES"])
MODEL = "rerank-test"
NO_MODEL = "no-such-model"
BEST_FIRST = sorted(range(len(SCORES)), key=lambda index: -SCORES[index])

Pairs = list[tuple[int, float]]


def ranks(pairs: Pairs, count: int = len(DOCUMENTS)) -> None:
    """Checks that indices and scores are those of the plain call, best first."""
    assert [index for index, _ in pairs] == BEST_FIRST[:count], pairs
    for index, score in pairs:
        assert abs(score - SCORES[index]) < 1e-6, (index, score, SCORES[index])


def raises(kind: type[BaseException], call: Callable[[], object], *words: str) -> None:
    """Checks that a call raises this very error, and that its text says what REST said."""
    try:
        call()
    except kind as error:
        text = f"{error} {getattr(error, 'body', '')} {getattr(error, 'content', '')}"
        assert all(word in text for word in words), text
    else:
        raise AssertionError(f"no {kind.__name__} was raised")


def main(package: str, checks: Mapping[str, Callable[[], object]], *, label: str = "") -> None:
    """Runs the checks of one client; prints a JSON line for each."""
    for name, check in checks.items():
        try:
            check()
            problem = ""
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"[:500]
        line = {"client": label or package, "version": version(package), "check": name, "problem": problem}
        print(json.dumps(line))
        sys.stdout.flush()
