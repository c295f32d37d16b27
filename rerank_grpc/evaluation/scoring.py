"""Has a model score the candidates of every query, several at once, and goes on where a start was ended."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from queue import SimpleQueue

from rerank_grpc.errors import ConfigurationError, InvalidRequest, PairTooLarge
from rerank_grpc.evaluation.collection import Collection
from rerank_grpc.evaluation.journal import ScoredQuery, ScoreJournal
from rerank_grpc.evaluation.scorers import QueryScorer, QueryScores

# What is scored, by the query's name; None is Ctrl-C.
_Finished = SimpleQueue[tuple[str, Future[QueryScores]] | None]


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
    finished: _Finished = SimpleQueue()

    def begin(count: int) -> int:
        names = list(islice(left, count))
        for name in names:
            texts = [collection.corpus[each] for each in collection.candidates[name]]
            future = threads.submit(scorer.score, collection.queries[name], texts)
            future.add_done_callback(partial(_put, finished, name))
        return len(names)

    try:
        with _interrupted_in_turn(finished):
            working, before = begin(scorer.concurrency), time.perf_counter()
            while working:
                done = _all_of(finished)
                now = time.perf_counter()
                share, before = (now - before) / len(done), now
                for name, future in done:
                    scores, call, inference = _result(future, name)
                    journal.append(ScoredQuery(name, scores, share, call, inference))
                    progress()
                working += begin(len(done)) - len(done)
        try:
            scorer.confirm()
        except ConfigurationError:
            journal.withdraw()
            raise
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # a call that hangs ends with its client


def _put(finished: _Finished, name: str, future: Future[QueryScores]) -> None:
    finished.put((name, future))


@contextmanager
def _interrupted_in_turn(finished: _Finished) -> Iterator[None]:
    """Puts Ctrl-C among what is finished while the block runs; raises it at the end where it is left.

    A KeyboardInterrupt in the midst of concurrent.futures leaves a lock taken there, for which a thread waits
    and the process's end with it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or not _is_main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: finished.put(None))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not finished.empty():
        raise KeyboardInterrupt


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _all_of(finished: _Finished) -> list[tuple[str, Future[QueryScores]]]:
    """Waits for what is finished next, and takes what is by then; raises KeyboardInterrupt for Ctrl-C."""
    found = [finished.get()]
    while not finished.empty():
        found.append(finished.get())
    if None in found:
        raise KeyboardInterrupt
    return [each for each in found if each is not None]


def _result(future: Future[QueryScores], name: str) -> QueryScores:
    try:
        return future.result()
    except (InvalidRequest, PairTooLarge) as error:
        raise ConfigurationError(f"query {name!r} cannot be scored: {error}") from None
