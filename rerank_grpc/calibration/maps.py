"""Monotone maps from a logit to the probability of relevance, cheap enough for every result."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

LARGEST_LOGIT = 3.4028234663852886e38  # float32's own: every logit of a model lies within
MOST_KNOTS = 4_096
_SMALLEST_EXPONENT = -700.0  # exp(700) is still finite, and 1 / (1 + exp(700)) is 0 in float32


class BadField(ValueError):
    """A field of a calibration that has a value that is not allowed, and what was expected."""

    def __init__(self, name: str, expected: str) -> None:
        super().__init__(f"{name}: {expected}")
        self.name = name
        self.expected = expected


@dataclass(frozen=True, slots=True)
class PlattMap:
    """The sigmoid of slope · logit + intercept (Platt 1999); the slope is not negative.

    Raises BadField.
    """

    method: ClassVar[str] = "platt"

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        # Within float32, no product or sum of these and a logit overflows float64.
        if not 0 <= self.slope <= LARGEST_LOGIT:
            raise BadField("slope", "a number of 0 or more is expected, within float32")
        if not -LARGEST_LOGIT <= self.intercept <= LARGEST_LOGIT:
            raise BadField("intercept", "a number is expected, within float32")

    def probabilities(self, logits: Iterable[float]) -> list[float]:
        """Maps logits to [0, 1], rounded to float32; a higher logit never gets less."""
        slope, intercept, exp = self.slope, self.intercept, math.exp
        if slope == 0:  # an infinite logit times 0 is no number
            constant = array("f", [1 / (1 + exp(-max(intercept, _SMALLEST_EXPONENT)))])[0]
            return [constant for _ in logits]
        # One formula for both signs: each of its steps is monotone when rounded, and so is the whole. NaN,
        # which no model should give, fails the comparison and counts as the lowest logit.
        return array(
            "f",
            [
                1 / (1 + exp(-exponent))
                if (exponent := slope * logit + intercept) > _SMALLEST_EXPONENT
                else 0.0
                for logit in logits
            ],
        ).tolist()


@dataclass(frozen=True, slots=True)
class IsotonicMap:
    """Lines between knots (logit, probability), and the outermost probabilities beyond them.

    Logits increase from knot to knot, and probabilities do not decrease. Raises BadField.
    """

    method: ClassVar[str] = "isotonic"

    knots: tuple[tuple[float, float], ...]
    _logits: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.knots) <= MOST_KNOTS:
            raise BadField("knots", f"1 to {MOST_KNOTS:,} knots are expected")
        for index, (logit, probability) in enumerate(self.knots):
            name = f"knots[{index}]"
            if not -LARGEST_LOGIT <= logit <= LARGEST_LOGIT:
                raise BadField(name, "a logit of float32 is expected first")
            if not 0 <= probability <= 1:
                raise BadField(name, "a probability from 0 to 1 is expected second")
            if index and not self.knots[index - 1][0] < logit:
                raise BadField(name, "a logit above the last knot's is expected")
            if index and not self.knots[index - 1][1] <= probability:
                raise BadField(name, "a probability not below the last knot's is expected")
        object.__setattr__(self, "_logits", tuple(logit for logit, _ in self.knots))

    def probabilities(self, logits: Iterable[float]) -> list[float]:
        """Maps logits to [0, 1], rounded to float32; a higher logit never gets less."""
        return array("f", [self._probability(logit) for logit in logits]).tolist()

    def _probability(self, logit: float) -> float:
        knots, logits = self.knots, self._logits
        if not logit > logits[0]:  # or NaN, which no model should give
            return knots[0][1]
        if logit >= logits[-1]:
            return knots[-1][1]
        above = bisect_right(logits, logit)
        left, low = knots[above - 1]
        right, high = knots[above]
        # Rounding can carry the end of a line past its knot.
        return min(low + (logit - left) / (right - left) * (high - low), high)
