"""Turns outputs into logits, one a document, and logits into relevance scores."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from rerank_grpc.sequence import Output, TokenizedDocument
from rerank_grpc.types import Scoring


def best_chunk(document: TokenizedDocument, logit_of: Callable[[int], float]) -> tuple[int, float]:
    """Returns which window of a document scores best, and its logit."""
    chunks = document.chunks
    if len(chunks) == 1:
        return 0, logit_of(chunks[0].sequence)
    logits = [logit_of(chunk.sequence) for chunk in chunks]
    highest = max(logits)
    return logits.index(highest), highest


def logits_of(outputs: Sequence[Output | None], query: int | None) -> Callable[[int], float]:
    """Returns what makes the index of a finished sequence its logit in float32.

    An output is the logit itself, or, with `query` the index of the query's
    vector, a vector of length 1 whose cosine with it is the logit.
    """
    if query is None:
        return cast("Sequence[float]", outputs).__getitem__
    return lambda index: float(np.dot(outputs[query], outputs[index]))  # type: ignore[arg-type]


def relevance_scores(logits: Sequence[float], scoring: Scoring) -> list[float]:
    """Maps logits to [0, 1], rounded to float32: sigmoid, or (1 + cosine) / 2.

    A softmax over "yes" and "no" is the sigmoid of their difference, which is
    what such a model's logit is.
    """
    activate = _from_cosine if scoring is Scoring.COSINE else _sigmoid
    return array("f", map(activate, logits)).tolist()


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    small = math.exp(logit)  # of a negative number, so that it cannot overflow
    return small / (1 + small)


def _from_cosine(cosine: float) -> float:
    return min(max((1 + cosine) / 2, 0.0), 1.0)
