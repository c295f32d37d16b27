"""The scoring of a collection is ended between two queries."""

import signal
import threading

import pytest

from rerank_grpc.evaluation.journal import ScoreJournal
from rerank_grpc.evaluation.scorers import loaded_scorer
from rerank_grpc.evaluation.scoring import score_all
from tests.evaluation.conftest import SETTINGS
from tests.support import wait_for


@pytest.mark.parametrize("left", [100, 0])
def test_ctrl_c_comes_between_two_queries_and_never_amid_the_work(tmp_path, collection, model, left):
    count = len(collection.candidates)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    whole = list[int]()

    def interrupted() -> None:
        if len(whole) == count - left - 1:
            signal.raise_signal(signal.SIGINT)
        whole.append(len(journal.done))

    with loaded_scorer(str(model), SETTINGS) as scorer:
        journal = ScoreJournal(tmp_path / "bert.scores.jsonl", {"model": "bert"})
        with pytest.raises(KeyboardInterrupt):
            score_all(collection, scorer, journal, interrupted)
        journal.close()
    assert count - left <= len(whole) <= count
    assert left == 0 or len(whole) < count
    assert whole == list(range(1, len(journal.done) + 1))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    wait_for(lambda: not any(thread.name.startswith("evaluate") for thread in threading.enumerate()))
