"""Measures of rankings, per query, by ir-measures; and how a ranking is written so that all read it alike."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rerank_grpc.evaluation.collection import Collection
from rerank_grpc.evaluation.scorers import PairScore

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

RECALL_AT = 10
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
    import numpy as np

    place = {name: number for number, name in enumerate(collection.queries)}
    values = {measure: np.zeros(len(place)) for measure in measures}
    scored = {name: dict(found) for name, found in run.items() if found}
    for query, measure, value in ir_measures.iter_calc(measures, collection.qrels, scored):
        values[measure][place[query]] = value
    return values
