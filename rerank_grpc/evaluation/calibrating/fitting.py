"""Fits a map on labelled logits: Platt's sigmoid, or isotonic regression."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from rerank_grpc.calibration.maps import MOST_KNOTS, IsotonicMap, PlattMap

_Floats = npt.NDArray[np.float64]
_Labels = npt.NDArray[np.bool_]

METHODS = (PlattMap.method, IsotonicMap.method)


def fit(method: str, logits: _Floats, relevant: _Labels) -> PlattMap | IsotonicMap:
    """Fits a map by a method's name; both labels occur, and logits differ."""
    return fit_isotonic(logits, relevant) if method == IsotonicMap.method else fit_platt(logits, relevant)


def fit_platt(logits: _Floats, relevant: _Labels) -> PlattMap:
    """Fits a sigmoid by maximum likelihood towards Platt's targets, which keep its slope finite.

    Platt (1999) takes (N₊ + 1) / (N₊ + 2) for relevant pairs and 1 / (N₋ + 2) for others instead of 1 and 0:
    labels that a logit separates perfectly have a finite best slope then. Where the best slope would be
    negative, or all logits are equal, it is 0, and every probability is the share of relevant pairs.
    """
    low, high = targets(relevant)
    target = np.where(relevant, high, low)
    share = float(target.mean())
    constant = PlattMap(0.0, float(np.log(share / (1 - share))))
    centre, spread = float(logits.mean()), float(logits.std())
    if spread == 0:
        return constant
    # A target between 0 and 1 is a pair of both labels, weighted by it.
    x = np.tile((logits - centre) / spread, 2).reshape(-1, 1)
    y = np.repeat([1, 0], len(logits))
    weights = np.concatenate([target, 1 - target])
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1_000)
    with warnings.catch_warnings():
        # The tolerance lies below what float64 always reaches; the figures on the held-out half tell.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y, sample_weight=weights)
    slope = float(model.coef_[0, 0]) / spread
    return PlattMap(slope, float(model.intercept_[0]) - slope * centre) if slope > 0 else constant


def fit_isotonic(logits: _Floats, relevant: _Labels) -> IsotonicMap:
    """Fits the non-decreasing step-like line of least squares; no probability passes Platt's targets.

    A block of pairs of one label would have the probability 0 or 1, which no finite number of pairs shows.
    """
    low, high = targets(relevant)
    model = IsotonicRegression(y_min=low, y_max=high, out_of_bounds="clip")
    model.fit(logits, relevant.astype(np.float64))
    knots = list(zip(model.X_thresholds_.tolist(), model.y_thresholds_.tolist(), strict=True))
    if len(knots) > MOST_KNOTS:
        kept = np.unique(np.linspace(0, len(knots) - 1, MOST_KNOTS).round().astype(int))
        knots = [knots[place] for place in kept]
    return IsotonicMap(tuple(knots))


def targets(relevant: _Labels) -> tuple[float, float]:
    """Returns Platt's targets of irrelevant and of relevant pairs."""
    positive = int(relevant.sum())
    return 1 / (len(relevant) - positive + 2), (positive + 1) / (positive + 2)
