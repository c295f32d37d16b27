"""Turns outputs into logits and relevance scores, and finds the best chunk of each document."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple, cast

import numpy as np

from rerank_grpc.sequence import Output, TokenizedDocument
from rerank_grpc.types import Scoring


class BestChunk(NamedTuple):
    """The chunk of a document with the highest logit: its position in the document, and the logit."""

    position: int
    logit: float


def best_chunks(
    documents: Sequence[TokenizedDocument], outputs: Sequence[Output | None], query: int | None
) -> list[BestChunk]:
    """Finds the best chunk of each document, the first of equal ones.

    `outputs` holds those of the documents and, for a bi-encoder, that of the query, at index `query`.
    """
    own = [outputs[chunk.sequence] for document in documents for chunk in document.chunks]
    logits = cast("list[float]", own)
    if query is not None:  # the outputs are vectors of length 1, and the logit is a cosine
        vector = cast("Output", outputs[query])
        logits = [float(np.dot(vector, output)) for output in logits]
    left, best = iter(logits), []
    for document in documents:
        of_chunks = list(islice(left, len(document.chunks)))
        highest = max(of_chunks)
        best.append(BestChunk(of_chunks.index(highest), highest))
    return best


def relevance_scores(logits: Iterable[float], scoring: Scoring) -> list[float]:
    """Maps logits to [0, 1], rounded to float32: sigmoid, or (1 + cosine) / 2.

    The logit of a model that answers "yes" or "no" is a difference, whose sigmoid is their softmax.
    """
    if scoring is Scoring.COSINE:
        return array("f", [min(max((1 + cosine) / 2, 0.0), 1.0) for cosine in logits]).tolist()
    return array("f", map(_sigmoid, logits)).tolist()


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    small = math.exp(logit)  # of a negative number, so it cannot overflow
    return small / (1 + small)
