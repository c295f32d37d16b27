"""Runs a new engine before its first call: warms caches, finds the best batch, measures costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter

import torch

from rerank_grpc.engine.engine import Engine
from rerank_grpc.engine.meter import Counts
from rerank_grpc.errors import InternalError, ModelLoadError
from rerank_grpc.models.base import ModelCard
from rerank_grpc.registry.memory import BatchMemory
from rerank_grpc.sequence import Sequence
from rerank_grpc.tokenizer.tokenizer import Tokenizer
from rerank_grpc.types import Call, Document, RerankRequest

PROBE_QUERY = "how does a reranker score a document?"
FILLER = "It reads the query and the document together and gives the pair one number. "

WORTHWHILE = 1.05  # the gain in tokens per second that is worth the longer wait of other calls
PROMISING = 1.01  # the gain of one doubling for which the next is tried
RUNS = 3
LONGEST_BATCH_SECONDS = 1.0  # a longer batch makes all calls wait, however well it fills the device
SMALLEST_BATCH_TOKENS = 512
LARGEST_BATCH_TOKENS = 131_072
SHORT_TOKENS = 16
PASSAGE_TOKENS = 128
LONGEST_TOKENS = 512  # the longest that a language model takes costs minutes on a CPU


def warm_up(engine: Engine, tokenizer: Tokenizer, card: ModelCard) -> None:
    """Scores documents of several lengths, measures batches, and sets their budget unless it is configured.

    Raises the errors of an ordinary call, so a model that cannot score is never READY.
    """
    for tokens in (SHORT_TOKENS, PASSAGE_TOKENS, min(card.max_tokens, LONGEST_TOKENS)):
        _score(engine, _sequences(tokenizer, tokens, count=4))
    full: dict[int, Counts] = {}
    if engine.settings.max_batch_tokens is None:
        memory = BatchMemory(torch.device(card.device))

        def seconds_of(budget: int) -> float:
            engine.max_batch_tokens = budget
            full[budget] = _full_batches(engine, tokenizer)
            memory.measured(budget)
            return budget / full[budget].tokens_per_second

        engine.max_batch_tokens = best_budget(seconds_of, memory.fits)
    smallest = _cheapest(engine, _sequences(tokenizer, SHORT_TOKENS, count=1))
    engine.calibrate(smallest, full.get(engine.max_batch_tokens) or _full_batches(engine, tokenizer))


@contextmanager
def finite_scores(engine: Engine, card: ModelCard) -> Iterator[None]:
    """Makes the error of a score that is not finite a ModelLoadError, whose text is the operator's."""
    try:
        yield
    except InternalError as error:
        if not engine.not_finite:
            raise
        raise ModelLoadError(f"{card.source}: a score is not finite: the weights are damaged") from error


def best_budget(seconds_of: Callable[[int], float], fits: Callable[[int], bool] = lambda _: True) -> int:
    """Finds the tokens of the smallest batch whose rate is nearly the best of all that fit the memory."""
    rates: dict[int, float] = {}
    best, budget = 0.0, SMALLEST_BATCH_TOKENS
    while budget <= LARGEST_BATCH_TOKENS and (not rates or fits(budget)):
        seconds = seconds_of(budget)
        if rates and seconds > LONGEST_BATCH_SECONDS:
            break
        rates[budget] = budget / seconds
        promising = rates[budget] >= PROMISING * best
        best = max(best, rates[budget])
        if not promising or seconds > LONGEST_BATCH_SECONDS / 2:
            break
        budget *= 2
    return min(budget for budget, rate in rates.items() if rate * WORTHWHILE >= best)


def _full_batches(engine: Engine, tokenizer: Tokenizer) -> Counts:
    count = max(1, engine.max_batch_tokens // PASSAGE_TOKENS)
    return _cheapest(engine, _sequences(tokenizer, PASSAGE_TOKENS, count=count))


def _cheapest(engine: Engine, sequences: tuple[Sequence, ...]) -> Counts:
    """Runs sequences several times; returns the device's use in the best of the runs."""
    runs = []
    for _ in range(RUNS):
        before = engine.counts
        _score(engine, sequences)
        runs.append(engine.counts.since(before))
    return min(runs, key=attrgetter("busy_seconds"))


def _sequences(tokenizer: Tokenizer, tokens: int, *, count: int) -> tuple[Sequence, ...]:
    documents = [Document(f"{number} {FILLER * max(1, tokens // 16)}") for number in range(count)]
    return tokenizer.tokenize(RerankRequest(PROBE_QUERY, documents, max_tokens_per_document=tokens)).sequences


def _score(engine: Engine, sequences: tuple[Sequence, ...]) -> None:
    with engine.admit(Call()) as admission:
        admission.submit(sequences).wait()
