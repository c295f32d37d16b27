"""Turns outputs into logits and relevance scores, and finds the best chunk of each document."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
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

    `outputs` holds one for each sequence, those of the documents at least.
    `query` is the index of the query's, for a bi-encoder.
    """
    own = [outputs[chunk.sequence] for document in documents for chunk in document.chunks]
    logits = iter(logits_of(cast("list[Output]", own), None if query is None else outputs[query]))
    best = []
    for document in documents:
        of_chunks = list(islice(logits, len(document.chunks)))
        highest = max(of_chunks)
        best.append(BestChunk(of_chunks.index(highest), highest))
    return best


def logits_of(outputs: Sequence[Output], query: Output | None) -> Sequence[float]:
    """Returns the logits of outputs in float32.

    An output is the logit itself, or, with the query's vector, a vector of
    length 1 whose cosine with it is the logit.
    """
    if query is None:
        return cast("Sequence[float]", outputs)
    return [float(np.dot(query, output)) for output in outputs]


def relevance_scores(logits: Sequence[float], scoring: Scoring) -> list[float]:
    """Maps logits to [0, 1], rounded to float32: sigmoid, or (1 + cosine) / 2.

    The logit of a model that answers "yes" or "no" is the difference of these
    two, whose sigmoid is the softmax over both.
    """
    if scoring is Scoring.COSINE:
        return array("f", [min(max((1 + cosine) / 2, 0.0), 1.0) for cosine in logits]).tolist()
    return array("f", map(_sigmoid, logits)).tolist()


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    small = math.exp(logit)  # of a negative number, so it cannot overflow
    return small / (1 + small)
