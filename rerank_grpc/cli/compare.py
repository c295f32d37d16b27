"""Compares the scores and the order of a lower precision with those of fp32, over an operator's texts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple, TypeAlias

from rerank_grpc.cli.rerank.lines import decoded_lines
from rerank_grpc.cli.rerank.records import ReadingOptions
from rerank_grpc.errors import ConfigurationError, InvalidRequest
from rerank_grpc.limits import check_request
from rerank_grpc.types import Document, RerankRequest

# The largest root mean square difference of logits, as a share of fp32's deviation.
RMS_BOUNDS = {"bf16": 7e-2, "fp16": 7e-2, "int8": 2e-1, "int8-all": 2e-1}
TOP = 10  # the documents that a caller is taken to read
CLIP = 600  # characters of a built-in document

# Logits of each question's documents, in their order.
Logits: TypeAlias = Sequence[Sequence[float]]


class Ranking(NamedTuple):
    """A query and the documents that it ranks."""

    query: str
    documents: tuple[str, ...]


# The queries that stand for an operator's own, each about a chapter of Python's manual.
BUILT_IN = {
    "try": "how is an exception handled, and what runs in any case?",
    "with": "what does a context manager do when a block ends?",
    "class": "how does a class inherit from several others?",
    "import": "where does the interpreter look for a module?",
    "for": "how is a loop over the items of a list ended early?",
    "strings": "which escape sequences may a string literal hold?",
}


def built_in_questions(each: int = 4) -> list[Ranking]:
    """Makes questions about Python's own manual; every query ranks all documents, `each` of a chapter.

    Raises ConfigurationError where Python was installed without its manual or these chapters.
    """
    documents: list[str] = []
    chapters = _manual()
    for chapter in BUILT_IN:
        paragraphs = [" ".join(text.split()) for text in chapters.get(chapter, "").split("\n\n")]
        documents += [text[:CLIP] for text in paragraphs if len(text) > 80][:each]
    if len(documents) < 2:
        raise ConfigurationError("this Python has no texts to compare: give --texts FILE")
    return [Ranking(query, tuple(documents)) for query in BUILT_IN.values()]


def _manual() -> Mapping[str, str]:
    """Returns the chapters of Python's manual by their names; none where it is not installed."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return topics


def read_questions(file: str) -> list[Ranking]:
    """Reads JSON lines of {"query": …, "documents": […]}, or a query and its documents, one a line.

    Raises ConfigurationError that names the file and the line.
    """
    read = decoded_lines(file, ReadingOptions())
    lines = [(number, text.rstrip("\r\n")) for number, text in read if text.strip()]
    if not lines:
        raise ConfigurationError(f"{file}: no texts: every line is empty")
    texts = [text for _, text in lines]
    if not texts[0].lstrip().startswith("{"):
        questions = [Ranking(texts[0], tuple(texts[1:]))]
    else:
        questions = [_read_question(text, f"{file}: line {number}") for number, text in lines]
    if all(len(question.documents) < 2 for question in questions):
        raise ConfigurationError(f"{file}: no query has two documents, so none has an order to compare")
    for number, question in enumerate(questions, 1):
        try:
            check_request(request_of(question.query, question.documents))
        except InvalidRequest as error:
            raise ConfigurationError(f"{file}: query {number}: {error.message}") from None
    return questions


def _read_question(text: str, place: str) -> Ranking:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{place}: is not JSON") from None
    query, documents = (
        (value.get("query"), value.get("documents")) if isinstance(value, dict) else (None, None)
    )
    if not isinstance(query, str) or not isinstance(documents, list):
        raise ConfigurationError(f'{place}: is not {{"query": "...", "documents": ["...", ...]}}')
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise ConfigurationError(f"{place}: documents[{index}]: is not a string")
    return Ranking(query, tuple(documents))


def request_of(query: str, documents: Iterable[str]) -> RerankRequest:
    """Makes the request that ranks documents."""
    return RerankRequest(query, tuple(map(Document, documents)))


class Comparison(NamedTuple):
    """How far one precision is from fp32; the means are over the queries that have an order."""

    tau: float  # Kendall's: 1 if every two documents keep their order, -1 if all change it
    top: float  # the share of the first TOP documents that stay among them
    firsts: int  # queries whose first document stays
    queries: int
    rms: float  # of the logits' differences, as a share of fp32's deviation within a query
    largest: float  # likewise

    def holds(self, precision: str) -> bool:
        """Whether the differences are within the precision's bound; NaN never is."""
        return self.rms <= RMS_BOUNDS[precision]


def compare(expected: Logits, found: Logits) -> Comparison:
    """Compares logits of the same texts; raises ConfigurationError where fp32 tells no documents apart."""
    deviation = _deviation(expected)
    ordered = [pair for pair in zip(expected, found, strict=True) if len(set(pair[0])) > 1]
    if not ordered or deviation <= 0:
        raise ConfigurationError("all documents of a query score alike in fp32: give other --texts")
    differences = [
        abs(a - b) / deviation
        for pair in zip(expected, found, strict=True)
        for a, b in zip(*pair, strict=True)
    ]
    return Comparison(
        tau=_mean(kendall_tau(*pair) for pair in ordered),
        top=_mean(top_overlap(*pair) for pair in ordered),
        firsts=sum(right[_order(ours)[0]] == max(right) for right, ours in ordered),
        queries=len(ordered),
        rms=math.sqrt(_mean(each**2 for each in differences)),
        largest=math.nan if any(map(math.isnan, differences)) else max(differences),
    )


def _deviation(logits: Logits) -> float:
    """The standard deviation of logits around the mean of their query."""
    squares, freedom = 0.0, 0
    for each in logits:
        middle = _mean(each)
        squares += sum((logit - middle) ** 2 for logit in each)
        freedom += len(each) - 1
    return math.sqrt(squares / freedom)


def kendall_tau(expected: Sequence[float], found: Sequence[float]) -> float:
    """Kendall's tau over the pairs that `expected` orders; a pair that `found` ties counts for neither."""
    balance = pairs = 0
    for (a, ours), (b, theirs) in combinations(zip(expected, found, strict=True), 2):
        if a != b:
            pairs += 1
            kept = (a - b) * (ours - theirs)
            balance += (kept > 0) - (kept < 0)
    return balance / pairs


def top_overlap(expected: Sequence[float], found: Sequence[float]) -> float:
    """The share of the first TOP documents that are among the first TOP of both."""
    first, second = _order(expected)[:TOP], _order(found)[:TOP]
    return len(set(first) & set(second)) / len(first)


def _order(logits: Sequence[float]) -> list[int]:
    """Ranks documents; ties keep the caller's order."""
    return sorted(range(len(logits)), key=lambda index: -logits[index])


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


HEAD = ("precision", "Kendall's tau", f"top {TOP}", "first stays", "rms", "largest", "allowed", "")


def row_of(precision: str, found: Comparison) -> tuple[str, ...]:
    """Writes a comparison as a row under HEAD."""
    return (
        precision,
        f"{found.tau:.3f}",
        f"{found.top:.0%}",
        f"{found.firsts} of {found.queries}",
        f"{found.rms:.1e}",
        f"{found.largest:.1e}",
        f"rms {RMS_BOUNDS[precision]:.0e}",
        "ok" if found.holds(precision) else "TOO FAR",
    )
