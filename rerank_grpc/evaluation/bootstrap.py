"""Confidence intervals by a paired bootstrap over queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
LEVEL = 0.95
_NUMBERS_AT_ONCE = 1 << 22


class Interval(NamedTuple):
    """A mean over queries, and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


class Outcome(NamedTuple):
    """How many queries one ranking does better than another, as well, and worse."""

    better: int
    same: int
    worse: int


def intervals(
    columns: Sequence[npt.NDArray[np.float64]], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Interval]:
    """Estimates the mean of each column, [queries], and its 95 % interval: percentiles of resampled means.

    All columns see the same resamples, so the interval of a difference is that of a column of differences
    (Sakai, SIGIR 2006, https://doi.org/10.1145/1148170.1148261). The seed makes it repeatable.
    """
    values = np.stack(columns, axis=1)
    queries = len(values)
    generator = np.random.default_rng(seed)
    step = max(1, _NUMBERS_AT_ONCE // max(1, queries * values.shape[1]))
    means = []
    for start in range(0, resamples, step):
        chosen = generator.integers(queries, size=(min(step, resamples - start), queries))
        means.append(values[chosen].mean(axis=1))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return [
        Interval(float(mean), float(least), float(most))
        for mean, least, most in zip(values.mean(axis=0), low, high, strict=True)
    ]


def outcome(difference: npt.NDArray[np.float64]) -> Outcome:
    """Counts the queries where a difference is above, at and below 0."""
    better, worse = int((difference > 1e-9).sum()), int((difference < -1e-9).sum())
    return Outcome(better, len(difference) - better - worse, worse)
