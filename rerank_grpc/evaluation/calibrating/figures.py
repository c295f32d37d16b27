"""Measures how far probabilities agree with labels, and how surely a logit orders them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import brier_score_loss, roc_auc_score

from rerank_grpc.calibration.calibration import CLEAR_AUC, Fidelity, HeldOutFigures
from rerank_grpc.evaluation.calibrating.labelled import LabelledPairs

BINS = 10
RESAMPLES = 1_000
_NOISE_DRAWS = 200

_Floats = npt.NDArray[np.float64]
_Labels = npt.NDArray[np.bool_]


class Bins(NamedTuple):
    """Arrays over bins, by rising probability: mean probability, share of relevant pairs, pairs."""

    predicted: _Floats
    observed: _Floats
    counts: _Floats


def held_out_figures(pairs: LabelledPairs, probabilities: _Floats, seed: int) -> HeldOutFigures:
    """Measures relevance_score as a probability, and the map's probabilities, on held-out pairs.

    The area before the map is the logit's, which the map is of: in float32 many logits have the score 1, and
    a score of late interaction depends on the query's length as well.
    """
    low, high = auc_interval(pairs, seed)
    before = fidelity(pairs.scores, pairs.relevant, pairs.logits)
    return HeldOutFigures(
        bins=BINS,
        before=before,
        after=fidelity(probabilities, pairs.relevant, probabilities),
        ece_of_chance=ece_of_chance(probabilities, seed),
        auc_low=low,
        auc_high=high,
        clean_separation=before.auc >= CLEAR_AUC,
    )


def fidelity(probabilities: _Floats, relevant: _Labels, ordered_by: _Floats) -> Fidelity:
    """Measures probabilities against labels, and how well what they are ordered by separates these."""
    return Fidelity(
        ece=expected_calibration_error(probabilities, relevant),
        brier=float(brier_score_loss(relevant, probabilities)),
        auc=float(roc_auc_score(relevant, ordered_by)),
    )


def expected_calibration_error(probabilities: _Floats, relevant: _Labels, count: int = BINS) -> float:
    """Averages, over pairs, how far each bin's share of relevant pairs lies from its mean probability."""
    bins = binned(probabilities, relevant, count)
    return float(np.abs(bins.predicted - bins.observed) @ bins.counts / bins.counts.sum())


def binned(probabilities: _Floats, relevant: _Labels, count: int = BINS) -> Bins:
    """Puts pairs into bins of about equally many, by quantiles; equal probabilities share a bin."""
    edges = np.quantile(probabilities, np.linspace(0, 1, count + 1)[1:-1])
    places = np.searchsorted(edges, probabilities)
    counts = np.bincount(places, minlength=count).astype(np.float64)
    filled = counts > 0
    sums = [np.bincount(places, weights=each, minlength=count) for each in (probabilities, relevant)]
    predicted, observed = (each[filled] / counts[filled] for each in sums)
    return Bins(predicted, observed, counts[filled])


def ece_of_chance(probabilities: _Floats, seed: int) -> float:
    """Averages the error that these probabilities would show if they were exact: labels are drawn by them."""
    generator = np.random.default_rng(seed)
    drawn = (generator.random(len(probabilities)) < probabilities for _ in range(_NOISE_DRAWS))
    return float(np.mean([expected_calibration_error(probabilities, each) for each in drawn]))


def auc_interval(pairs: LabelledPairs, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Bounds the area under the ROC of the logit with 95 % confidence: a bootstrap over queries.

    A resample weights each query by how often it was drawn; one without both labels is drawn again.
    """
    generator = np.random.default_rng(seed)
    names, of_pair = np.unique(pairs.queries, return_inverse=True)
    _, ranks = np.unique(pairs.logits, return_inverse=True)
    areas: list[float] = []
    while len(areas) < resamples:
        weights = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))[of_pair]
        area = _weighted_area(ranks, pairs.relevant, weights)
        if area is not None:
            areas.append(area)
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


def _weighted_area(
    ranks: npt.NDArray[np.intp], relevant: _Labels, weights: npt.NDArray[np.intp]
) -> float | None:
    """Computes the weighted area of ranked pairs: the sort is done once for all resamples."""
    positive = np.bincount(ranks, weights=weights * relevant)
    negative = np.bincount(ranks, weights=weights * ~relevant)
    total = positive.sum() * negative.sum()
    if total == 0:
        return None
    below = np.cumsum(negative) - negative / 2
    return float(positive @ below / total)
