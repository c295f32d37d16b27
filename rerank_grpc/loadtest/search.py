"""Finds the highest rate that meets an objective: doubles until one misses it, then halves what lies between.

Pure: the steps are run by others, who tell whether a rate has met it.
"""

from __future__ import annotations

import math
from enum import StrEnum

TOLERANCE = 0.05  # rates nearer to each other are not told apart


class Verdict(StrEnum):
    """How a search ended."""

    FOUND = "found"
    ALL_MEET = "all meet"  # the highest rate that was allowed, too
    NONE_MEETS = "none meets"


class Search:
    """The search between two rates; the one it finds has met the objective twice.

    A rate that meets it the first time and misses it the second counts as missed.
    """

    def __init__(self, lowest: float, highest: float, tolerance: float = TOLERANCE) -> None:
        self._lowest, self._highest, self._tolerance = lowest, highest, tolerance
        self._met: list[float] = []
        self._confirmed: set[float] = set()
        self._missed = math.inf
        self.verdict: Verdict | None = None
        self.given_up = ""  # why it ended without a verdict

    @property
    def best(self) -> float | None:
        """The highest rate that has met the objective so far."""
        return self._met[-1] if self._met else None

    def next_rate(self) -> float | None:
        """Returns the rate to try; None once `verdict` or `given_up` is there."""
        if self.verdict is not None or self.given_up:
            return None
        best = self.best
        if best is None:
            return self._lowest
        if best >= self._highest or self._missed / best <= 1 + self._tolerance:
            return best  # once more, to confirm it
        if self._missed is math.inf:
            return min(2 * best, self._highest)
        return math.sqrt(best * self._missed)

    @property
    def is_confirming(self) -> bool:
        """Whether the next rate has met the objective before."""
        return self.best is not None and self.next_rate() == self.best

    def give_up(self, why: str) -> None:
        """Ends it without a verdict; what has met the objective stays."""
        self.given_up = why

    def told(self, rate: float, met: bool) -> None:
        """Takes the verdict on the rate that was tried."""
        if not met:
            self._missed = min(self._missed, rate)
            self._met = [each for each in self._met if each < rate]
            if not self._met and rate <= self._lowest:
                self.verdict = Verdict.NONE_MEETS
        elif rate in self._met:
            self._confirmed.add(rate)
            self.verdict = Verdict.ALL_MEET if rate >= self._highest else Verdict.FOUND
        else:
            self._met.append(rate)
