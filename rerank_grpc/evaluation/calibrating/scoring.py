"""Scores the candidates of a judged collection, query by query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from rerank_grpc.evaluation.collection import Collection
from rerank_grpc.evaluation.scorers import PairScore, QueryScorer


def candidate_scores(collection: Collection, scorer: QueryScorer) -> Iterator[tuple[str, list[PairScore]]]:
    """Yields each query that has candidates with their scores, in order; raises RerankError.

    Calls run beside each other, as many as are of use; those that have not begun are dropped at an error.
    """
    names = [name for name, found in collection.candidates.items() if found]

    def score(name: str) -> list[PairScore]:
        documents = [collection.corpus[each] for each in collection.candidates[name]]
        return scorer.scores(collection.queries[name], documents)

    with ThreadPoolExecutor(scorer.concurrency, thread_name_prefix="score") as pool:
        yield from zip(names, pool.map(score, names), strict=True)


def unscored(candidates: Mapping[str, Sequence[str]]) -> dict[str, list[PairScore]]:
    """Stands for the scores before they are there, so that labels can be checked without them."""
    return {name: [PairScore(0.0, 0.0)] * len(found) for name, found in candidates.items()}
