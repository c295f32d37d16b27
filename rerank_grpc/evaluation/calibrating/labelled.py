"""Pairs with labels: which pairs count as relevant, and the halves of them by query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rerank_grpc.calibration.calibration import LabelRule, PairCounts
from rerank_grpc.errors import ConfigurationError

LEAST_OF_EACH = 10  # relevant pairs, and irrelevant ones, in each half
_UNSCORED = -1e8  # a text that is not scored, or without a token, has the logit -1e9

_Floats = npt.NDArray[np.float64]


class ScoredPair(NamedTuple):
    """A candidate as a model scored it; `grade` is None for one that nobody has judged."""

    query: str
    logit: float
    relevance_score: float
    grade: int | None


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPairs:
    """Arrays of one length: the query's number, the logit, the relevance_score and the label of each pair.

    Queries are numbered by their ids' order, so that halves do not depend on a file's.
    """

    queries: npt.NDArray[np.intp]
    logits: _Floats
    scores: _Floats
    relevant: npt.NDArray[np.bool_]

    @property
    def counts(self) -> PairCounts:
        """Counts queries and pairs."""
        relevant = int(self.relevant.sum())
        return PairCounts(len(np.unique(self.queries)), relevant, len(self.relevant) - relevant)

    def where(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> LabelledPairs:
        """Selects pairs by a mask, or by their places."""
        return LabelledPairs(
            self.queries[chosen], self.logits[chosen], self.scores[chosen], self.relevant[chosen]
        )


def scored_pairs(
    candidates: Mapping[str, Sequence[str]],
    qrels: Mapping[str, Mapping[str, int]],
    scores: Mapping[str, Sequence[tuple[float, float]]],
) -> Iterable[ScoredPair]:
    """Joins candidates with their (logit, relevance_score) and grades; a query may have no candidate."""
    for query, documents in candidates.items():
        grades = qrels.get(query, {})
        for document, (logit, score) in zip(documents, scores.get(query, ()), strict=True):
            yield ScoredPair(query, logit, score, grades.get(document))


def labelled(pairs: Iterable[ScoredPair], rule: LabelRule) -> tuple[LabelledPairs, int]:
    """Labels pairs by a rule; tells as well how many are left out, because their text was not scored.

    Raises ConfigurationError where nothing is left.
    """
    kept, unscored = [], 0
    for pair in pairs:
        if pair.logit <= _UNSCORED:
            unscored += 1
        elif pair.grade is not None or rule.unjudged == "irrelevant":
            kept.append(pair)
    if not kept:
        raise ConfigurationError("no pair is left to fit on: no candidate is judged, or none could be scored")
    numbers = {name: number for number, name in enumerate(sorted({pair.query for pair in kept}))}
    found = LabelledPairs(
        np.array([numbers[pair.query] for pair in kept]),
        np.array([pair.logit for pair in kept]),
        np.array([pair.relevance_score for pair in kept]),
        np.array([pair.grade is not None and pair.grade >= rule.relevant_from for pair in kept]),
    )
    return found, unscored


def halves(pairs: LabelledPairs, rule: LabelRule, seed: int) -> tuple[LabelledPairs, LabelledPairs]:
    """Splits pairs by query, at random: one half to fit on, the other held out.

    Pairs of one query stay together, because they resemble each other. Raises ConfigurationError where a half
    has too few pairs of a label.
    """
    names = np.unique(pairs.queries)
    shuffled = np.random.default_rng(seed).permutation(names)
    fit = np.isin(pairs.queries, shuffled[: (len(names) + 1) // 2])
    found = pairs.where(fit), pairs.where(~fit)
    least = min(min(half.counts.relevant, half.counts.irrelevant) for half in found)
    if least < LEAST_OF_EACH:
        counts = pairs.counts
        raise ConfigurationError(
            f"too few pairs: {counts.queries:,} queries have {counts.relevant:,} relevant candidates (grade "
            f"{rule.relevant_from} or more) and {counts.irrelevant:,} irrelevant ones, and half of the "
            f"queries have {least:,} of one kind, where {LEAST_OF_EACH} of each are needed: "
            f"{_remedy(counts, rule)}"
        )
    return found


def _remedy(counts: PairCounts, rule: LabelRule) -> str:
    if not counts.irrelevant and rule.unjudged == "left-out":
        return "count candidates without a judgement as irrelevant (--unjudged irrelevant)"
    if not counts.relevant and rule.relevant_from > 1:
        return "lower --relevant-from, or judge more queries"
    if not counts.relevant:
        return "check that the candidates hold judged documents, or take more of each query"
    return "judge more queries"
