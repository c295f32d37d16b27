"""The search finds the highest rate that meets an objective, and measures it twice."""

import random

import pytest

from benchmarks.fixed_service import waited
from rerank_grpc.loadtest.plan import arrivals
from rerank_grpc.loadtest.search import Search, Verdict
from rerank_grpc.loadtest.slo import Objective


def searched(search, meets, most=60):
    """Runs a search against a rule; returns the rates it has tried."""
    tried = []
    while (rate := search.next_rate()) is not None:
        tried.append(rate)
        assert len(tried) < most
        search.told(rate, meets(rate))
    return tried


@pytest.mark.parametrize("limit", [1.0, 1.4, 7.3, 55.5, 99.0, 199.9])
def test_the_highest_rate_is_found_within_a_twentieth(limit):
    search = Search(1, 200)
    tried = searched(search, lambda rate: rate <= limit)
    assert search.verdict is Verdict.FOUND
    assert search.best is not None
    assert limit / 1.05 <= search.best <= limit
    assert tried.count(search.best) == 2
    assert len(tried) <= 16


def test_the_capacity_of_a_queue_is_found_to_a_fiftieth():
    # 25 calls a second are all that 40 ms a call allow; above, the queue grows for as long as calls come.
    objective, seconds = Objective.of("p90=150ms"), 30.0

    def meets(rate):
        plan = arrivals("constant", rate, 0.0, seconds, random.Random(1), 0)
        return not objective.missed(waited(plan, 0.04), failed=0)

    search = Search(10, 80)
    tried = searched(search, meets)
    assert tried[:3] == [10, 20, 40]
    assert search.verdict is Verdict.FOUND
    assert search.best is not None
    assert meets(search.best)
    assert not meets(1.05 * search.best)
    assert 25 / 1.05 <= search.best <= 25.2

    fine = Search(10, 80, tolerance=0.001)
    searched(fine, meets)
    assert fine.best == pytest.approx(25.1, abs=0.05)  # as 30 s tell it: the queue of p90 fills in that time


def test_a_search_that_gives_up_has_no_verdict_and_keeps_what_was_met():
    search = Search(10, 80)
    search.told(10, met=True)
    search.told(20, met=True)
    search.give_up("the server is away")
    assert (search.next_rate(), search.verdict, search.best) == (None, None, 20)


def test_a_search_never_goes_far_beyond_what_is_met():
    tried = searched(Search(1, 10_000), lambda rate: rate <= 6)
    assert max(tried) == 8


def test_rates_that_all_meet_it_are_told():
    search = Search(10, 50)
    assert searched(search, lambda rate: True) == [10, 20, 40, 50, 50]
    assert search.verdict is Verdict.ALL_MEET


def test_a_lowest_rate_that_misses_ends_the_search():
    search = Search(10, 50)
    assert searched(search, lambda rate: False) == [10]
    assert search.verdict is Verdict.NONE_MEETS
    assert search.best is None


def test_a_rate_that_is_not_confirmed_counts_as_missed():
    search, seen = Search(1, 100), []

    def meets(rate):
        again = rate in seen
        seen.append(rate)
        return rate <= 20 or (rate <= 30 and not again)

    searched(search, meets)
    assert search.verdict is Verdict.FOUND
    assert search.best is not None
    assert search.best <= 20
