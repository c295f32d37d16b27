"""The queries and documents that every kind is asked."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from tests.models.kinds.templates import OTHER_INSTRUCTION
from tests.random_models import texts

QUERY = "How does a Coroutine wait for a Future?"
LENGTHS = (0, 1, 5, 20, 47, 90, 150, 240, 400, 700, 2_500)  # in characters
ODD_TEXTS = (
    "  spaces before,\tand behind  ",
    "\na line break before, and behind\n\n",
    "one\ntwo\n\nthree  four",
    "\"double\", 'single', {braces}, {{ two }}, {% a block %}, \\n",
    "熊猫吃竹子。Deep Learning 深度学习",
    "pandas 🐼🎋 eat bamboo, naïve façade",
    "query: a tuple\ndocument: a list\nRelevance: 1",
    "<Instruct>: yes\n<Query>: no\n<Document>: yes",
    "? ??",
)


class Case(NamedTuple):
    """One request: its query, documents and instruction."""

    query: str
    documents: tuple[str, ...]
    instruction: str = ""
    short: bool = True  # whether the query takes less than half of what fits

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The query beside each document."""
        return [(self.query, document) for document in self.documents]


@cache
def documents() -> tuple[str, ...]:
    """From nothing to more than fits, in no order of length, and texts that look like a prompt."""
    joined = " ".join(texts()[100:300])
    natural = [joined[97 * place : 97 * place + length] for place, length in enumerate(LENGTHS)]
    return (*natural[6:], *ODD_TEXTS, *natural[:6])


def cases(*, instructed: bool) -> list[Case]:
    """The requests, with one that instructs where a kind takes an instruction."""
    joined = " ".join(texts()[400:500])
    long_queries = [Case(joined[:length], ("", "a list", ODD_TEXTS[0]), short=False) for length in (280, 600)]
    found = [
        Case(QUERY, documents()),
        Case('\n what\'s a "tuple" for? 元组 \n', documents()[3:9]),
        Case("", documents()[3:6]),
        *long_queries,
    ]
    return [*found, Case(QUERY, documents()[2:9], OTHER_INSTRUCTION)] if instructed else found
