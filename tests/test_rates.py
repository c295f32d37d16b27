"""What a caller may send: charged at the door, paid back by time alone."""

from __future__ import annotations

import random
import threading

import pytest

from rerank_grpc.access.rates import MOST_BALANCES, Rates
from rerank_grpc.callers import ANYONE, Caller, Counted, Rate
from rerank_grpc.errors import RateLimited


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def caller(
    per_second: float = 10, burst: float = 50, *, name: str = "shop", counted: Counted = Counted.DOCUMENTS
) -> Caller:
    return Caller(name, rate=Rate(counted, per_second, burst))


def by_tokens(per_second: float = 100, burst: float = 500) -> Caller:
    return caller(per_second, burst, counted=Counted.TOKENS)


def enter(rates: Rates, caller: Caller, documents: int) -> None:
    rates.enter(caller, documents)


def refusal(rates: Rates, caller: Caller, documents: int) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        enter(rates, caller, documents)
    return caught.value


def test_a_caller_sends_its_burst_and_then_its_rate(clock: Clock):
    rates = Rates(clock)
    for _ in range(5):
        enter(rates, caller(), 10)
    assert refusal(rates, caller(), 10).retry_after == 1.0
    sent = 0
    for _ in range(1_000):
        clock.now += 0.1
        try:
            enter(rates, caller(), 5)
            sent += 5
        except RateLimited:
            pass
    assert sent == pytest.approx(10 * 100, abs=5)


def test_a_refusal_says_whose_rate_it_is_and_how_much(clock: Clock):
    rates = Rates(clock)
    enter(rates, caller(), 50)
    error = refusal(rates, caller(), 4)
    assert error.message == "shop has used up its rate of 10 documents a second: retry in 0.4 s"
    assert error.metadata == {"caller": "shop", "counted": "documents", "per_second": "10", "burst": "50"}


@pytest.mark.parametrize("seed", range(20))
def test_the_time_of_a_refusal_is_that_after_which_the_same_call_is_let_in_and_no_more(seed: int):
    chance, clock = random.Random(seed), Clock()
    for _ in range(50):
        rates, who = Rates(clock), caller(chance.uniform(0.1, 1_000), chance.uniform(1, 2_000))
        clock.now += chance.random()
        enter(rates, who, 5_000)
        clock.now += chance.random()
        documents = chance.randint(1, 3_000)
        seconds = refusal(rates, who, documents).retry_after or 0
        clock.now += seconds - 0.002
        refusal(rates, who, documents)
        clock.now += 0.002
        enter(rates, who, documents)


def test_a_call_larger_than_the_burst_is_let_in_when_that_is_there_and_leaves_a_debt(clock: Clock):
    rates = Rates(clock)
    enter(rates, caller(), 10)
    assert refusal(rates, caller(), 120).retry_after == 1.0
    clock.now += 1.0
    enter(rates, caller(), 120)
    assert refusal(rates, caller(), 1).retry_after == 7.1


def test_a_refused_call_costs_nothing_and_hammering_gains_nothing(clock: Clock):
    rates = Rates(clock)
    enter(rates, caller(), 50)
    for _ in range(10_000):
        refusal(rates, caller(), 10)
        clock.now += 0.00005
    seconds = refusal(rates, caller(), 10).retry_after or 0
    assert seconds == pytest.approx(0.5, abs=0.002)
    clock.now += seconds
    enter(rates, caller(), 10)


def test_what_is_refused_at_the_door_is_taken_back(clock: Clock):
    rates = Rates(clock)
    for _ in range(10):
        enter(rates, caller(), 50)
        rates.give_back(caller(), 50)
    enter(rates, caller(), 50)
    refusal(rates, caller(), 1)


def test_tokens_are_charged_once_they_are_known_and_may_leave_a_debt(clock: Clock):
    rates, who = Rates(clock), by_tokens()
    enter(rates, who, 1_000)
    rates.charge_tokens(who, 500)
    enter(rates, who, 1)  # not in debt yet
    rates.charge_tokens(who, 300)
    assert refusal(rates, who, 1).retry_after == 3.0
    clock.now += 3.0
    enter(rates, who, 1)


def test_a_part_of_a_call_that_was_charged_is_let_in_whatever_is_left(clock: Clock):
    rates = Rates(clock)
    enter(rates, caller(), 500)
    enter(rates, caller(), 0)


def test_each_counts_what_its_rate_says_and_no_other(clock: Clock):
    rates = Rates(clock)
    rates.charge_tokens(caller(), 10_000)
    enter(rates, caller(), 50)
    rates.charge_tokens(ANYONE, 10_000)
    enter(rates, ANYONE, 10_000)


def test_callers_have_balances_of_their_own(clock: Clock):
    rates = Rates(clock)
    enter(rates, caller(), 50)
    refusal(rates, caller(), 1)
    enter(rates, caller(name="other"), 50)


def test_a_rate_that_changes_brings_no_fresh_burst(clock: Clock):
    rates = Rates(clock)
    enter(rates, caller(10, 50), 50)
    for turn in range(1, 100):
        assert refusal(rates, caller(10 + turn % 2, 50 + turn), 20).retry_after
    clock.now += 2.0
    enter(rates, caller(10, 1_000), 20)
    refusal(rates, caller(10, 1_000), 3)


def test_a_lower_burst_is_what_is_left_at_most(clock: Clock):
    rates = Rates(clock)
    enter(rates, caller(10, 50), 1)
    enter(rates, caller(10, 5), 5)
    refusal(rates, caller(10, 5), 1)


def test_a_rate_of_another_unit_goes_on_with_the_same_part(clock: Clock):
    rates = Rates(clock)
    enter(rates, caller(10, 50), 100)
    assert refusal(rates, by_tokens(100, 500), 1).retry_after == 5.0


def test_a_rate_that_was_taken_away_for_a_while_goes_on_where_it_was(clock: Clock):
    rates = Rates(clock)
    enter(rates, caller(), 50)
    enter(rates, Caller("shop"), 1_000)
    refusal(rates, caller(), 1)


def test_names_without_end_take_no_room_and_no_debt_is_forgotten(clock: Clock):
    rates = Rates(clock)
    enter(rates, caller(), 500)
    for number in range(3 * MOST_BALANCES):
        enter(rates, caller(name=f"visitor {number}"), 1)
        clock.now += 0.001
    assert len(rates._balances) <= MOST_BALANCES
    refusal(rates, caller(), 1)


def test_threads_that_enter_at_once_get_no_more_than_is_there():
    rates, let_in = Rates(Clock()), list[int]()

    def send() -> None:
        for _ in range(200):
            try:
                enter(rates, caller(1, 300), 1)
                let_in.append(1)
            except RateLimited:
                pass

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let_in) == 300
