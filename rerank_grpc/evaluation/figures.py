"""The findings of an evaluation: measures before and after each model, their intervals, and the time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from rerank_grpc.evaluation.collection import Collection
from rerank_grpc.evaluation.journal import ScoredQuery
from rerank_grpc.evaluation.measures import (
    SEED,
    ConfidenceInterval,
    WinsTiesLosses,
    as_run,
    intervals,
    measured,
    outcome,
    ranked,
    title_of,
)
from rerank_grpc.evaluation.scorers import ModelIdentity

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DEPTHS = (5, 10, 20, 50)  # candidates; below all of them
Run = Mapping[str, Sequence[tuple[str, float]]]


class Figure(NamedTuple):
    """One measure of one model: its mean after reranking, and the difference to before."""

    measure: str
    before: ConfidenceInterval
    after: ConfidenceInterval
    difference: ConfidenceInterval
    outcome: WinsTiesLosses


class Contrast(NamedTuple):
    """The difference between two models by one measure: that of the second less that of the first."""

    first: str
    second: str
    measure: str
    difference: ConfidenceInterval
    outcome: WinsTiesLosses


class FiguresAtDepth(NamedTuple):
    """The figures of reranking the first `depth` candidates alone, the others behind them in their order.

    `held` is the mean share of a query's relevant documents that are among those first ones; `means` are by
    the measures' titles.
    """

    depth: int
    held: float
    means: dict[str, float]


class TimeOfQueries(NamedTuple):
    """Means per query in seconds: of the whole run's clock, of a call, and of the model's own work in it.

    `wall` is the clock's time by the number of queries; calls at once share it.
    """

    wall: float
    call: float
    inference: float
    concurrency: int


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """The figures of one model; `relevant` and `others` are relevance scores of its pairs."""

    identity: ModelIdentity
    run: Run
    figures: list[Figure]
    depths: list[FiguresAtDepth]
    time: TimeOfQueries
    relevant: list[float]
    others: list[float]

    def of(self, measure: str) -> Figure:
        """Finds a measure's figure by its title."""
        return next(each for each in self.figures if each.measure == measure)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of all models on one collection; `ceiling` is the recall of all candidates, in the mean."""

    collection: Collection
    before: Run
    models: list[EvaluatedModel]
    contrasts: list[Contrast]
    ceiling: float
    seed: int


class ScoredModel(NamedTuple):
    """A model, and its scores of every query that has candidates."""

    identity: ModelIdentity
    queries: Mapping[str, ScoredQuery]
    concurrency: int


def evaluate(
    collection: Collection, models: Sequence[ScoredModel], measures: Sequence[Any], *, seed: int = SEED
) -> Evaluation:
    """Measures models on a collection, with intervals by a paired bootstrap over its queries."""
    before = {name: as_run(found) for name, found in collection.candidates.items()}
    runs: list[Run] = [
        {
            name: ranked(found, model.queries[name].scores) if found else []
            for name, found in collection.candidates.items()
        }
        for model in models
    ]
    values = [measured(collection, run, measures) for run in (before, *runs)]
    own = [
        _figures(model, run, of_run, values[0], collection, seed)
        for model, run, of_run in zip(models, runs, values[1:], strict=True)
    ]
    pairs = combinations(range(len(models)), 2)
    contrasts = [
        contrast
        for first, second in pairs
        for contrast in _contrasts(models, values[1:], first, second, seed)
    ]
    return Evaluation(collection, before, own, contrasts, _ceiling(collection), seed)


def _figures(
    model: ScoredModel,
    run: Run,
    values: dict[Any, npt.NDArray[np.float64]],
    before: dict[Any, npt.NDArray[np.float64]],
    collection: Collection,
    seed: int,
) -> EvaluatedModel:
    columns = [part for each in values for part in (before[each], values[each], values[each] - before[each])]
    found = iter(intervals(columns, seed=seed))
    figures = [
        Figure(title_of(each), next(found), next(found), next(found), outcome(values[each] - before[each]))
        for each in values
    ]
    scored = [model.queries[name] for name, documents in collection.candidates.items() if documents]
    count = len(scored)
    time = TimeOfQueries(
        sum(each.wall for each in scored) / count,
        sum(each.call for each in scored) / count,
        sum(each.inference for each in scored) / count,
        model.concurrency,
    )
    relevant, others = _split(collection, scored)
    depths = _depths(model, values, collection)
    return EvaluatedModel(model.identity, run, figures, depths, time, relevant, others)


def _depths(
    model: ScoredModel, all_of_them: dict[Any, npt.NDArray[np.float64]], collection: Collection
) -> list[FiguresAtDepth]:
    """Measures what reranking fewer candidates gives, by the same scores: a pair's depends on no other."""
    found = []
    for depth in (each for each in DEPTHS if each < collection.depth):
        run = {}
        for name, documents in collection.candidates.items():
            scores = model.queries[name].scores[:depth] if documents else []
            first = [document for document, _ in ranked(documents[:depth], scores)]
            run[name] = as_run([*first, *documents[depth:]])
        found.append((depth, measured(collection, run, list(all_of_them))))
    found.append((collection.depth, all_of_them))
    return [
        FiguresAtDepth(
            depth,
            _ceiling(collection.cut(depth)),
            {title_of(each): float(column.mean()) for each, column in values.items()},
        )
        for depth, values in found
    ]


def _contrasts(
    models: Sequence[ScoredModel],
    values: Sequence[dict[Any, npt.NDArray[np.float64]]],
    first: int,
    second: int,
    seed: int,
) -> Iterator[Contrast]:
    differences = [values[second][each] - values[first][each] for each in values[first]]
    names = models[first].identity.name, models[second].identity.name
    found = intervals(differences, seed=seed)
    for measure, difference, interval in zip(values[first], differences, found, strict=True):
        yield Contrast(*names, title_of(measure), interval, outcome(difference))


def _split(collection: Collection, scored: Sequence[ScoredQuery]) -> tuple[list[float], list[float]]:
    relevant: list[float] = []
    others: list[float] = []
    for each in scored:
        judged = collection.qrels[each.query]
        for document, score in zip(collection.candidates[each.query], each.scores, strict=True):
            (relevant if judged.get(document, 0) > 0 else others).append(score.relevance_score)
    return relevant, others


def _ceiling(collection: Collection) -> float:
    """Computes the recall of all candidates, in the mean over queries: what no reranker can exceed."""
    shares = []
    for name, judged in collection.qrels.items():
        relevant = {document for document, level in judged.items() if level > 0}
        found = relevant.intersection(collection.candidates[name])
        shares.append(len(found) / len(relevant) if relevant else 0.0)
    return sum(shares) / len(shares)
