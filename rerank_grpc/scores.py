"""Turns outputs into logits and relevance scores, and finds the best chunk of each document."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from rerank_grpc.calibration.calibration import Calibration
from rerank_grpc.sequence import Output, TokenizedDocument
from rerank_grpc.types import Scoring

EMPTY_LOGIT = -1e9  # sentence-transformers' MaxSim of a document without a token: below every other
BLOCK_ROWS = 4096  # the tokens of documents that are compared with a query's at once

_Array: TypeAlias = npt.NDArray[np.float32]


class BestChunk(NamedTuple):
    """The chunk of a document with the highest logit: its position in the document, and the logit."""

    position: int
    logit: float


UNSCORED = BestChunk(-1, EMPTY_LOGIT)


def best_chunks(
    documents: Sequence[TokenizedDocument],
    outputs: Sequence[Output | None],
    query: int | None,
    *,
    mean: bool = False,
) -> list[BestChunk]:
    """Finds the best chunk of each document, the first of equal ones; UNSCORED for one without chunks.

    `outputs` holds those of the documents and, where texts are encoded apart, that of the query, at index
    `query`: vectors of length 1, whose cosine is the logit, or matrices of them, whose MaxSim is; if `mean`,
    divided by the number of the query's vectors.
    """
    own = [outputs[chunk.sequence] for document in documents for chunk in document.chunks]
    logits = cast("list[float]", own)
    if query is not None:
        logits = _similarities(cast("_Array", outputs[query]), cast("list[_Array]", own))
        if mean:
            logits = [logit / count_query_tokens(outputs, query) for logit in logits]
    left, best = iter(logits), []
    for document in documents:
        if not document.chunks:
            best.append(UNSCORED)
            continue
        of_chunks = list(islice(left, len(document.chunks)))
        highest = max(of_chunks)
        best.append(BestChunk(of_chunks.index(highest), highest))
    return best


def _similarities(query: _Array, documents: Sequence[_Array]) -> list[float]:
    if query.ndim == 1:
        return [float(np.dot(query, document)) for document in documents]
    return [logit for block in _blocks(documents) for logit in _maxsims(query, block)]


def _blocks(documents: Sequence[_Array]) -> Iterator[list[_Array]]:
    """Groups matrices in their order, up to BLOCK_ROWS rows or one matrix: their products fit a cache."""
    block: list[_Array] = []
    rows = 0
    for document in documents:
        if block and rows + len(document) > BLOCK_ROWS:
            yield block
            block, rows = [], 0
        block.append(document)
        rows += len(document)
    if block:
        yield block


def _maxsims(query: _Array, documents: Sequence[_Array]) -> list[float]:
    """Sums, over the query's rows, the greatest product with a row of each document, in float32.

    All are [tokens, size]; a document without rows has EMPTY_LOGIT.
    """
    lengths = np.array([len(document) for document in documents])
    filled = lengths > 0  # reduceat knows no empty range
    logits = np.full(len(documents), EMPTY_LOGIT, dtype=np.float32)
    if filled.any():
        products = query @ np.concatenate(documents).T  # [query tokens, tokens of all documents]
        starts = (np.cumsum(lengths) - lengths)[filled]
        logits[filled] = np.maximum.reduceat(products, starts, axis=1).sum(axis=0)
    return logits.tolist()


def count_query_tokens(outputs: Sequence[Output | None], query: int | None) -> int:
    """Counts the cosines that a logit is the sum of: in late interaction, one for each token of the query."""
    output = None if query is None else outputs[query]
    return len(output) if isinstance(output, np.ndarray) and output.ndim == 2 else 1


def relevance_scores(
    logits: Iterable[float],
    scoring: Scoring,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
    query_tokens: int = 1,
) -> list[float]:
    """Maps logits to [0, 1], rounded to float32: by the activation of scale · logit + offset.

    The logit of a model that answers "yes" or "no" is a difference, whose sigmoid is their softmax. A MaxSim
    is a sum of `query_tokens` cosines.
    """
    if scale != 1 or offset != 0:
        logits = [scale * logit + offset for logit in logits]
    if scoring is Scoring.COSINE:
        return _mapped_cosines(logits)
    if scoring is Scoring.MAXSIM:
        return _mapped_cosines(total / max(1, query_tokens) for total in logits)
    if scoring is Scoring.TANH:  # (1 + tanh(x)) / 2 is the sigmoid of 2x, which loses no small score
        logits = (2 * logit for logit in logits)
    return array("f", map(_sigmoid, logits)).tolist()


def calibrated_scores(logits: Sequence[float], calibration: Calibration) -> list[float]:
    """Maps logits to probabilities of relevance, rounded to float32; 0 for a document that is not scored."""
    found = calibration.probabilities(logits)
    return [score if logit > EMPTY_LOGIT else 0.0 for logit, score in zip(logits, found, strict=True)]


def _mapped_cosines(cosines: Iterable[float]) -> list[float]:
    return array("f", [min(max((1 + cosine) / 2, 0.0), 1.0) for cosine in cosines]).tolist()


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    small = math.exp(logit)  # of a negative number, so it cannot overflow
    return small / (1 + small)
