"""Chooses thresholds for an asked precision or recall, and verifies them on pairs that were held out."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rerank_grpc.calibration.calibration import ProposedThreshold
from rerank_grpc.evaluation.calibrating.labelled import LabelledPairs

PRECISIONS = (0.5, 0.7, 0.8, 0.9)
RECALLS = (0.8, 0.9, 0.95)
LEAST_ABOVE = 10  # pairs above a threshold: a precision of fewer is luck

_Floats = npt.NDArray[np.float64]


class Aim(NamedTuple):
    """An asked figure: "precision" or "recall", from 0 to 1."""

    name: str
    asked: float


DEFAULT_AIMS = (
    *(Aim("precision", asked) for asked in PRECISIONS),
    *(Aim("recall", asked) for asked in RECALLS),
)


def propose(
    aim: Aim,
    fitted: tuple[LabelledPairs, _Floats],
    held_out: tuple[LabelledPairs, _Floats],
    *,
    monotone_score: bool = True,
) -> ProposedThreshold:
    """Chooses a threshold on the pairs that a map was fitted on; each half comes with its probabilities.

    For a precision it is the lowest that reaches it, for a recall the highest. Its relevance_score is None
    where that is no monotone function of the logit, or pairs below have the same one in float32.
    """
    pairs, probabilities = fitted
    least = _chosen(aim, probabilities, pairs.relevant)
    if least is None:
        return ProposedThreshold(aim.name, aim.asked, *[None] * 8)
    above = probabilities >= least
    score = float(pairs.scores[above].min())
    same = monotone_score and bool((above == (pairs.scores >= score)).all())
    chosen, relevant = held_out[1] >= least, held_out[0].relevant
    precision, recall = figures_above(chosen, relevant)
    low, high = wilson_interval(int((chosen & relevant).sum()), int(chosen.sum()))
    return ProposedThreshold(
        aim=aim.name,
        asked=aim.asked,
        calibrated_score=least,
        relevance_score=score if same else None,
        logit=float(pairs.logits[above].min()),
        above=int(chosen.sum()),
        precision=precision,
        precision_low=low,
        precision_high=high,
        recall=recall,
    )


def figures_above(
    above: npt.NDArray[np.bool_], relevant: npt.NDArray[np.bool_]
) -> tuple[float | None, float]:
    """Computes precision and recall of the pairs above a threshold; no pair has no precision."""
    found = int((above & relevant).sum())
    return found / int(above.sum()) if above.any() else None, found / int(relevant.sum())


def wilson_interval(found: int, count: int) -> tuple[float, float] | tuple[None, None]:
    """Bounds a share with 95 % confidence by Wilson's score (1927); a share of nothing has no bounds.

    It takes the pairs as independent, and has bounds within [0, 1] for few pairs and shares near 1, too.
    """
    if not count:
        return None, None
    share, z = found / count, NormalDist().inv_cdf(0.975)
    spread = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    centre, scale = share + z * z / (2 * count), 1 + z * z / count
    # Rounding can carry a bound past its share, and past 0 and 1 where all pairs have one label.
    return max(0.0, min(share, (centre - spread) / scale)), min(1.0, max(share, (centre + spread) / scale))


def _chosen(aim: Aim, probabilities: _Floats, relevant: npt.NDArray[np.bool_]) -> float | None:
    """Finds the probability from which on pairs have the asked figure, and most of the other one."""
    levels, places = np.unique(probabilities, return_inverse=True)
    # From the highest level down: the pairs at or above each.
    above = np.cumsum(np.bincount(places)[::-1])
    found = np.cumsum(np.bincount(places, weights=relevant)[::-1])
    if aim.name == "precision":
        good = np.flatnonzero((found / above >= aim.asked) & (above >= LEAST_ABOVE))
        place = good[-1] if len(good) else None
    else:
        place = np.flatnonzero(found >= aim.asked * found[-1])[0]
    return None if place is None else float(levels[::-1][place])
