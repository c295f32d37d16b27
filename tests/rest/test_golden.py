"""Every caller's own requests get the replies that were read and committed; see golden.py."""

from typing import Any

import pytest

from rerank_grpc.rest.dialects import PATHS, PREFIXES, RULES, dialect_of
from tests.rest.golden import answer, callers, exchanges
from tests.rest.support import post

ALL = [
    pytest.param(exchange, id=f"{caller}: {exchange['what']}")
    for caller in callers()
    for exchange in exchanges(caller)
]


@pytest.mark.parametrize("exchange", ALL)
def test_a_caller_gets_the_reply_it_got_before(port: int, exchange: dict[str, Any]) -> None:
    assert answer(port, exchange) == {"status": exchange["status"], "reply": exchange["reply"]}


def test_every_dialect_has_a_golden_pair() -> None:
    seen = set()
    for caller in callers():
        for exchange in exchanges(caller):
            body, path = exchange.get("body"), exchange["path"]
            if isinstance(body, dict):
                head = path.split("/")[1]
                prefix = head if head in PREFIXES else ""
                seen.add(dialect_of(body, prefix, path).name)
    known = {dialect.name for _, dialect, _ in RULES}
    known |= {dialect.name for dialects in PREFIXES.values() for dialect in dialects}
    assert seen == known


@pytest.mark.parametrize("path", PATHS)
def test_any_path_takes_any_dialect(port: int, path: str) -> None:
    path = path.replace("{model:path}", "nvidia/rerank")
    bodies = {
        "results": {"query": "q", "documents": ["d"]},
        "rankings": {"query": {"text": "q"}, "passages": [{"text": "d"}]},
        "output": {"input": {"query": "q", "documents": ["d"]}},
        "rerank_scores": {"text_pairs": "[['q', 'd']]"},
    }
    for key, body in bodies.items():
        assert key in post(port, path, body).json
    assert post(port, f"{path}/", {"query": "q", "texts": ["d"]}).json[0]["index"] == 0
