"""The texts that benchmarks score: natural ones out of the standard library, the same on every run.

    W1  short       1 query, 100 documents of about 8 tokens
    W2  passages    1 query of about 12 tokens, 100 documents, log-normal, about 140 tokens
    W3  long        1 query, 20 documents of about 1,500 tokens

Tokens are those of the tokenizers that benchmarks/checkpoints.py trains.
"""

from __future__ import annotations

import ast
import functools
import pydoc_data.topics
import random
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rerank_grpc.types import RerankRequest

QUERY = "how does asyncio cancel a task that still waits on a future?"
WORDS_PER_TOKEN = 0.72


@dataclass(frozen=True, slots=True)
class Workload:
    """One call: a query and its documents, cut at `max_tokens` with the query."""

    name: str
    query: str
    documents: tuple[str, ...]
    max_tokens: int = 512

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(self.query, document) for document in self.documents]


def request_of(query: str, documents: Sequence[str], max_tokens_per_document: int = 0) -> RerankRequest:
    """A request for the service's own tokenizer."""
    from rerank_grpc.types import Document, RerankRequest

    return RerankRequest(
        query, list(map(Document, documents)), max_tokens_per_document=max_tokens_per_document
    )


def logit_of(output: object) -> float:
    """A pair's score out of an engine's outputs, which are vectors for a bi-encoder alone."""
    assert isinstance(output, float)
    return output


def short() -> Workload:
    return Workload("W1", QUERY, documents([8] * 100, seed=1))


def passages(count: int = 100, *, seed: int = 2, scale: float = 1.0) -> Workload:
    """Documents of log-normal length; another seed gives others, with the same lengths' distribution."""
    chance = random.Random(seed)
    lengths = [scale * chance.lognormvariate(4.75, 0.6) for _ in range(count)]
    return Workload("W2", QUERY, documents(lengths, seed=seed))


def long(count: int = 20, *, max_tokens: int = 512) -> Workload:
    return Workload("W3", QUERY, documents([1_500] * count, seed=3), max_tokens)


def named(name: str) -> Workload:
    """W1, W2, W3, or W3@8192 for another length to cut at, each with :40 for its first 40 documents."""
    name, _, count = name.partition(":")
    kind, _, cut = name.partition("@")
    found = long(max_tokens=int(cut or 512)) if kind == "W3" else {"W1": short, "W2": passages}[kind]()
    return replace(found, documents=found.documents[: int(count)]) if count else found


def documents(tokens: list[float], *, seed: int) -> tuple[str, ...]:
    """Texts of about so many tokens each, from places of the corpus that `seed` chooses."""
    words = corpus_words()
    chance = random.Random(seed)
    texts = []
    for wanted in tokens:
        length = max(1, round(wanted * WORDS_PER_TOKEN))
        start = chance.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return tuple(texts)


@functools.cache
def corpus_words() -> list[str]:
    return [word for paragraph in paragraphs() for word in paragraph.split()]


@functools.cache
def paragraphs() -> list[str]:
    """Python's own manual and the docstrings of its top modules, in one order."""
    texts = list(pydoc_data.topics.topics.values()) + docstrings()
    return [part for text in texts for part in text.split("\n\n") if len(part) > 40]


def docstrings() -> list[str]:
    """The docstrings of the standard library's top modules, read without importing them."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.append(ast.get_docstring(node) or "")
    return found
