"""Runs a new engine before its first call: warms caches, finds the best batch, measures what batches cost."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

import torch

from rerank_grpc.engine.engine import Engine
from rerank_grpc.engine.meter import Counts
from rerank_grpc.models.base import ModelCard
from rerank_grpc.models.room import BatchRoom
from rerank_grpc.sequence import Sequence
from rerank_grpc.tokenizer.tokenizer import Encoder
from rerank_grpc.types import Call

QUERY = "how does a reranker score a document?"
WORDS = "It reads the query and the document together and gives the pair one number. "

# Larger batches must be so much faster a token to be worth the longer wait for others ...
WORTHWHILE = 1.05
# ... and are tried as long as each doubling gains at least this.
PROMISING = 1.01
RUNS = 3
# A batch that takes longer makes everybody wait, however well it fills the device.
LONGEST_BATCH_SECONDS = 1.0
SMALLEST_BATCH_TOKENS = 512
LARGEST_BATCH_TOKENS = 131_072
SHORT_TOKENS = 16
PASSAGE_TOKENS = 128
LONGEST_TOKENS = 512  # the longest that a language model takes costs minutes on a CPU


def warm_up(engine: Engine, encoder: Encoder, card: ModelCard) -> None:
    """Scores documents of several lengths, and measures what the smallest and a full batch cost.

    Sets the batch budget unless it was configured. Raises whatever an ordinary
    call would, so that a model that cannot score is never READY.
    """
    for tokens in (SHORT_TOKENS, PASSAGE_TOKENS, min(card.max_tokens, LONGEST_TOKENS)):
        _score(engine, _sequences(encoder, tokens, count=4))
    full: dict[int, Counts] = {}
    if engine.settings.max_batch_tokens is None:
        room = BatchRoom(torch.device(card.device))

        def seconds_of(budget: int) -> float:
            engine.max_batch_tokens = budget
            full[budget] = _full_batches(engine, encoder)
            room.measured(budget)
            return budget / full[budget].tokens_per_second

        engine.max_batch_tokens = best_budget(seconds_of, room.fits)
    smallest = _cheapest(engine, _sequences(encoder, SHORT_TOKENS, count=1))
    engine.calibrate(smallest, full.get(engine.max_batch_tokens) or _full_batches(engine, encoder))


def best_budget(seconds_of: Callable[[int], float], fits: Callable[[int], bool] = lambda _: True) -> int:
    """Finds the smallest batch whose rate is nearly the best of all sizes that fit.

    `seconds_of` measures a batch of so many tokens; `fits` tells beforehand
    whether the device's memory will hold it.
    """
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


def _full_batches(engine: Engine, encoder: Encoder) -> Counts:
    """Measures as many tokens as may be on the device at once."""
    count = max(1, engine.max_batch_tokens // PASSAGE_TOKENS)
    return _cheapest(engine, _sequences(encoder, PASSAGE_TOKENS, count=count))


def _cheapest(engine: Engine, sequences: tuple[Sequence, ...]) -> Counts:
    """Runs sequences several times; returns what the device did in the best of them."""
    runs = []
    for _ in range(RUNS):
        before = engine.counts
        _score(engine, sequences)
        runs.append(engine.counts.since(before))
    return min(runs, key=attrgetter("busy_seconds"))


def _sequences(encoder: Encoder, tokens: int, *, count: int) -> tuple[Sequence, ...]:
    documents = [f"{number} {WORDS * max(1, tokens // 16)}" for number in range(count)]
    return encoder.encode(QUERY, documents, max_tokens_per_document=tokens).sequences


def _score(engine: Engine, sequences: tuple[Sequence, ...]) -> None:
    """Runs sequences through the engine."""
    with engine.admit(Call()) as admission:
        admission.submit(sequences).wait()
