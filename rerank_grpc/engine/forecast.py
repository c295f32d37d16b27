"""Foresees how many tokens run before a new call is done, if no other comes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from rerank_grpc.engine.filling import EQUAL_SHARE, Standing
from rerank_grpc.engine.sharing import LEAD_BATCHES

Forecast: TypeAlias = Callable[[float], float]  # the seconds that tokens will take


class Pending(NamedTuple):
    """A call that waits: its caller and class, and the tokens of it that have not run."""

    standing: Standing
    tokens: int


def tokens_before(tokens: int, standing: Standing, ahead: Iterable[Pending], budget: int) -> float:
    """Predicts the tokens that run before a new call of `tokens`; `ahead` has those of its class and above.

    The caller's own calls go as its class's rule has it; of the others' as much as fair shares give them
    meanwhile.
    """
    above, mine, others = 0, list[int](), Counter[Standing]()
    for other, pending in ahead:
        if other is standing:
            mine.append(pending)
        elif other.priority is standing.priority:
            others[other] += pending
        else:
            above += pending
    before = _before_of_own(tokens, mine, above)
    if others:
        need = sum(mine) + tokens
        before += _beside(before - above + tokens, need, standing, others, LEAD_BATCHES * budget)
    return before


def _before_of_own(tokens: int, mine: list[int], above: int) -> float:
    """Counts what is above, and what goes first of the same caller's calls."""
    larger = deque(sorted(each for each in mine if each > tokens))
    first = above + sum(mine) - sum(larger)
    # Larger calls have their quarter meanwhile: those that need less before long go first, too.
    while larger and larger[0] - first * EQUAL_SHARE / len(larger) <= tokens:
        first += larger.popleft()
    return first + min(sum(larger), (first + tokens) * EQUAL_SHARE / (1 - EQUAL_SHARE))


def _beside(own: float, need: int, standing: Standing, others: Counter[Standing], lead: float) -> float:
    """Counts what other callers receive while a caller who needs `need` receives `own`."""
    # As long as it is not too far ahead, those that need more have the batches that are shared equally.
    leading = min(own, max(0.0, lead + standing.credit_tokens))
    beside, shared = leading * EQUAL_SHARE / (1 - EQUAL_SHARE), own - leading
    found, larger = 0.0, 0.0
    for other, pending in others.items():
        if pending <= need:
            found += min(pending, max(0.0, own + other.credit_tokens + lead))
        else:
            larger += 1
            found += min(pending, shared)
    return found + (beside if larger else 0.0)
