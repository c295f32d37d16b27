"""What the scripts of the frameworks' adapters share: the server's addresses, and the page's examples."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from harness import DOCUMENTS, QUERY, TARGET, TOKEN, raises, ranks

from rerank_grpc.client import (
    Client,
    InvalidRequest,
    ServerUnavailable,
    TlsError,
    Unauthenticated,
    UnknownModel,
    UnsupportedOption,
)

TLS = {"target": os.environ["CONFORMANCE_TLS_TARGET"], "ca": os.environ["CONFORMANCE_CA"], "token": TOKEN}
HERE = {"target": TARGET, "token": TOKEN}
NOWHERE = {"target": "127.0.0.1:1", "token": TOKEN, "retries": 0}
PAGE = Path(__file__).resolve().parents[3] / "docs" / "frameworks.md"

Ask = Callable[..., object]


def errors(ask: Ask) -> dict[str, Callable[[], object]]:
    """Makes the checks that the client's errors pass through an adapter; `ask` takes its options."""
    return {
        "error": lambda: raises(UnknownModel, lambda: ask(**HERE, model="no-such-model"), "no-such-model"),
        "wrong token": lambda: raises(Unauthenticated, lambda: ask(target=TARGET, token="wrong"), "token"),
        "instruction": lambda: raises(
            UnsupportedOption, lambda: ask(**HERE, instruction="Find the answer."), "instruction"
        ),
        "no server": lambda: raises(ServerUnavailable, lambda: ask(**NOWHERE), "127.0.0.1:1"),
        "unknown CA": lambda: raises(
            TlsError, lambda: ask(**{**TLS, "ca": None}, tls=True), "signed by none of"
        ),
    }


def calibrated(ask: Ask, pairs: Callable[[Any], list[tuple[int, float]]]) -> Callable[[], None]:
    """Makes the check that results below a probability are left out; the scores stay the relevance."""

    def run() -> None:
        with Client(**HERE) as client:
            first, second, *_ = client.rerank(QUERY, DOCUMENTS).results
        assert first.calibrated_score > second.calibrated_score
        between = (first.calibrated_score + second.calibrated_score) / 2
        ranks(pairs(ask(**HERE, min_calibrated_score=between)), 1)
        raises(InvalidRequest, lambda: ask(**HERE, min_calibrated_score=2.0), "min_calibrated_score")
        raises(UnsupportedOption, lambda: ask(**TLS, min_calibrated_score=0.1), "calibration")

    return run


def in_two_loops(ask: Callable[[], Awaitable[Any]], check: Callable[[Any], None]) -> None:
    """Asks twice, by one adapter in an event loop each, as a notebook or a test does."""
    for _ in range(2):
        check(asyncio.run(_once(ask)))


async def _once(ask: Callable[[], Awaitable[Any]]) -> Any:
    return await ask()


def example(heading: str) -> Callable[[], None]:
    """Makes the check that the page's example of a framework runs as it stands."""

    def run() -> None:
        _, _, section = PAGE.read_text("utf-8").partition(f"\n## {heading}\n")
        found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
        assert found is not None, f"no example below {heading}"
        text = found[1].replace('"HOST:50051"', repr(TARGET)).replace('"TOKEN"', repr(TOKEN))
        exec(compile(text, f"{PAGE.name}, {heading}", "exec"), {"__name__": "example"})

    return run
