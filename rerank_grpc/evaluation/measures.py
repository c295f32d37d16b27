"""Measures of rankings by ir-measures, with intervals; how a ranking is written so that all read it alike."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rerank_grpc.evaluation.collection import Collection
from rerank_grpc.evaluation.scorers import PairScore

RECALL_AT = 10
SEED = 0
LEVEL = 0.95
_NUMBERS_AT_ONCE = 1 << 22
_MANY_QUERIES = 5_000
_LEAST_STEP = (
    2.0**-60
)  # below the last score where that is 0, whose next float32 is too small for some readers
_STEP = 2.0**-22  # of a score: 2 to 4 of float32's


def ranked(candidates: Sequence[str], scores: Sequence[PairScore]) -> list[tuple[str, float]]:
    """Orders candidates as the service does, by logits and then as they came; gives their written scores.

    A written score is the logit in float32, lowered where it would not be below the one before: trec_eval
    reads float32 and orders equal scores by ids, other readers by what comes first, and so all have one
    order.
    """
    order = sorted(range(len(candidates)), key=lambda place: -scores[place].logit)  # stable
    written = strictly_decreasing([scores[place].logit for place in order])
    return [(candidates[place], score) for place, score in zip(order, written, strict=True)]


def strictly_decreasing(scores: Sequence[float]) -> list[float]:
    """Rounds descending scores to float32, and lowers each as little as makes it less than the one before."""
    found: list[float] = []
    for score in array("f", scores):
        if found and not score < found[-1]:
            last = found[-1]
            (score,) = array("f", [last - max(abs(last) * _STEP, _LEAST_STEP)])
        found.append(score)
    return found


def as_run(candidates: Sequence[str]) -> list[tuple[str, float]]:
    """Gives candidates scores that say their order and no more."""
    return [(name, float(len(candidates) - place)) for place, name in enumerate(candidates)]


def measures_of(recall_at: Sequence[int] = (RECALL_AT,)) -> list[Any]:
    """Makes the measures: nDCG@10, RR@10, R@k for each k, AP; the mean of RR is MRR, of AP MAP."""
    from ir_measures import AP, RR, R, nDCG

    return [nDCG @ 10, RR @ 10, *[R @ cutoff for cutoff in dict.fromkeys(recall_at)], AP]


def title_of(measure: Any) -> str:
    """Names the mean of a measure as people do."""
    return {"RR@10": "MRR@10", "AP": "MAP"}.get(str(measure), str(measure).replace("R@", "Recall@"))


def measured(
    collection: Collection, run: Mapping[str, Sequence[tuple[str, float]]], measures: Sequence[Any]
) -> dict[Any, npt.NDArray[np.float64]]:
    """Measures a run for each query, [queries] in the collection's order.

    A query without candidates, or without a relevant document, has 0. Candidates that are not judged are not
    relevant; relevant documents that are no candidates count as missed.
    """
    import ir_measures

    place = {name: number for number, name in enumerate(collection.queries)}
    values = {measure: np.zeros(len(place)) for measure in measures}
    scored = {name: dict(found) for name, found in run.items() if found}
    for query, measure, value in ir_measures.iter_calc(measures, collection.qrels, scored):
        values[measure][place[query]] = value
    return values


class ConfidenceInterval(NamedTuple):
    """A mean over queries, and the bounds of its confidence interval; None of one query, which has none."""

    mean: float
    low: float | None
    high: float | None


class WinsTiesLosses(NamedTuple):
    """How many queries one ranking does better than another, as well, and worse."""

    better: int
    same: int
    worse: int


def resamples_of(queries: int) -> int:
    """Tells how many resamples an interval takes: fewer of many queries, whose numbers would take minutes."""
    return 10_000 if queries <= _MANY_QUERIES else 1_000


def bounds(interval: ConfidenceInterval) -> tuple[float, float]:
    """Tells an interval's ends, which are its mean where it has none."""
    low, high = interval.low, interval.high
    return interval.mean if low is None else low, interval.mean if high is None else high


def intervals(
    columns: Sequence[npt.NDArray[np.float64]], *, seed: int = SEED, resamples: int | None = None
) -> list[ConfidenceInterval]:
    """Estimates the mean of each column, [queries], and its 95 % interval: percentiles of resampled means.

    All columns see the same resamples, so the interval of a difference is that of a column of differences
    (Sakai, SIGIR 2006, https://doi.org/10.1145/1148170.1148261). The seed makes it repeatable. Few queries
    have intervals that are too narrow; one has none.
    """
    values = np.stack(columns, axis=1)
    queries = len(values)
    if queries == 1:
        return [ConfidenceInterval(float(mean), None, None) for mean in values[0]]
    resamples = resamples or resamples_of(queries)
    generator = np.random.default_rng(seed)
    step = max(1, _NUMBERS_AT_ONCE // queries)
    means = []
    for start in range(0, resamples, step):
        # How often a resample has each query: far less memory than the values of all that it has.
        drawn = (
            generator.integers(queries, size=queries, dtype=np.int32)
            for _ in range(start, min(start + step, resamples))
        )
        counts = np.stack([np.bincount(each, minlength=queries) for each in drawn])
        means.append(counts.astype(np.float64) @ values / queries)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return [
        ConfidenceInterval(float(mean), float(least), float(most))
        for mean, least, most in zip(values.mean(axis=0), low, high, strict=True)
    ]


def outcome(difference: npt.NDArray[np.float64]) -> WinsTiesLosses:
    """Counts the queries where a difference is above, at and below 0."""
    better, worse = int((difference > 1e-9).sum()), int((difference < -1e-9).sum())
    return WinsTiesLosses(better, len(difference) - better - worse, worse)
