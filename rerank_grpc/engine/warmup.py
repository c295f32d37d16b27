"""Runs a new engine before its first call: caches get warm, and its rate and best batch are measured."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import torch

from rerank_grpc.engine.batch import Sequence
from rerank_grpc.engine.engine import Engine
from rerank_grpc.engine.request import ScoringRequest
from rerank_grpc.engine.tokenizer import Encoder
from rerank_grpc.models.base import ModelCard
from rerank_grpc.models.room import BatchRoom

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
PASSAGE_TOKENS = 128
LONGEST_TOKENS = 512  # the longest that a language model takes costs minutes on a CPU


def warm_up(engine: Engine, encoder: Encoder, card: ModelCard) -> None:
    """Scores documents of several lengths, and sets the batch budget unless it was configured.

    Raises whatever an ordinary call would, so that a model that cannot score
    is never READY.
    """
    for tokens in (16, PASSAGE_TOKENS, min(card.max_tokens, LONGEST_TOKENS)):
        _score(engine, _sequences(encoder, tokens, count=4))
    if engine.settings.max_batch_tokens is None:
        room = BatchRoom(torch.device(card.device))
        engine.max_batch_tokens = best_budget(
            lambda budget: _measure(engine, encoder, budget, room), room.fits
        )


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


def _measure(engine: Engine, encoder: Encoder, budget: int, room: BatchRoom) -> float:
    """Returns the seconds of one batch of about `budget` tokens, the best of several."""
    engine.max_batch_tokens = budget
    sequences = _sequences(encoder, PASSAGE_TOKENS, count=max(1, budget // PASSAGE_TOKENS))
    share = budget / sum(map(len, sequences))
    seconds = share * min(_score(engine, sequences) for _ in range(RUNS))
    room.measured(budget)
    return seconds


def _sequences(encoder: Encoder, tokens: int, *, count: int) -> tuple[Sequence, ...]:
    documents = [f"{number} {WORDS * max(1, tokens // 16)}" for number in range(count)]
    return encoder.encode(QUERY, documents, max_tokens_per_document=tokens).sequences


def _score(engine: Engine, sequences: tuple[Sequence, ...]) -> float:
    """Runs sequences through the engine; returns the seconds from the first batch to the last."""
    request: ScoringRequest = engine.submit(sequences)
    started = monotonic()
    request.wait()
    engine.release(request)
    return monotonic() - started
