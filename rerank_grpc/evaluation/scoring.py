"""Has a model score the candidates of every query, several at once, and goes on where a start was ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from rerank_grpc.errors import ConfigurationError, InvalidRequest, PairTooLarge
from rerank_grpc.evaluation.collection import Collection
from rerank_grpc.evaluation.journal import ScoredQuery, ScoreJournal
from rerank_grpc.evaluation.scorers import QueryScorer, QueryScores


def score_all(
    collection: Collection,
    scorer: QueryScorer,
    journal: ScoreJournal,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Scores the queries that a journal does not have yet; `progress` hears of each.

    Raises ConfigurationError for a query that the model cannot take, and what the scorer raises: the journal
    has what came before. Where the model is another one at the end, nobody knows since when: the journal
    keeps only what it had at the start.
    """
    left = iter([name for name, found in collection.candidates.items() if found and name not in journal.done])
    threads = ThreadPoolExecutor(scorer.concurrency, thread_name_prefix="evaluate")
    try:
        working = dict(_begun(collection, scorer, threads, left, scorer.concurrency))
        before = time.perf_counter()
        while working:
            finished, _ = wait(working, return_when=FIRST_COMPLETED)
            now = time.perf_counter()
            share, before = (now - before) / len(finished), now
            for future in finished:
                name = working.pop(future)
                scores, call, inference = _result(future, name)
                journal.append(ScoredQuery(name, scores, share, call, inference))
                progress()
            working.update(_begun(collection, scorer, threads, left, len(finished)))
        try:
            scorer.confirm()
        except ConfigurationError:
            journal.withdraw()
            raise
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # a call that hangs ends with its client


def _begun(
    collection: Collection, scorer: QueryScorer, threads: ThreadPoolExecutor, left: Iterator[str], count: int
) -> Iterator[tuple[Future[QueryScores], str]]:
    for name in islice(left, count):
        texts = [collection.corpus[each] for each in collection.candidates[name]]
        yield threads.submit(scorer.score, collection.queries[name], texts), name


def _result(future: Future[QueryScores], name: str) -> QueryScores:
    try:
        return future.result()
    except (InvalidRequest, PairTooLarge) as error:
        raise ConfigurationError(f"query {name!r} cannot be scored: {error}") from None
