"""Turns outputs into logits, one a document, and logits into relevance scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rerank_grpc.engine.encoding import EncodedDocument
from rerank_grpc.engine.request import Output
from rerank_grpc.types import Scoring


def chunk_logits(
    document: EncodedDocument, outputs: Sequence[Output | None], query: int | None
) -> list[float]:
    """Returns the logit of each window of a document, in float32.

    An output is the logit itself, or, with `query` the index of the query's
    vector, a vector of length 1 whose cosine with it is the logit.
    """
    logits = [outputs[chunk.sequence] for chunk in document.chunks]
    if query is not None:
        logits = [np.dot(outputs[query], vector) for vector in logits]  # type: ignore[arg-type]
    return [float(logit) for logit in logits]  # type: ignore[arg-type]


def relevance_scores(logits: Sequence[float], scoring: Scoring) -> list[float]:
    """Maps logits to [0, 1] in float32: sigmoid, or (1 + cosine) / 2.

    A softmax over "yes" and "no" is the sigmoid of their difference, which is
    what such a model's logit is.
    """
    values = np.asarray(logits, dtype=np.float32)
    if scoring is Scoring.COSINE:
        scores = ((1 + values) / 2).clip(0, 1)
    else:
        with np.errstate(over="ignore"):  # exp(100) is inf in float32, and 1 / inf the right 0
            scores = 1 / (1 + np.exp(-values))
    return [float(score) for score in scores]
