"""A hang and a pause look alike to a clock; the watchdog's looks tell them apart. Times are arguments."""

import pytest

from rerank_grpc.engine.watchdog import Watchdog

HANG = 8.0


def looks(watchdog: Watchdog, started: float | None, first: float, last: float) -> float | None:
    """Looks as often as it is meant to; returns when it found a hang."""
    now = first
    while now <= last:
        if watchdog.look(started, now):
            return now
        now += watchdog.interval
    return None


@pytest.mark.parametrize("started", [0.0, 0.3, 0.99])
def test_a_hang_is_found_within_a_quarter_more_than_its_time(started: float):
    found = looks(Watchdog(HANG), started, first=1, last=60)
    assert found is not None
    assert HANG < found - started <= HANG * 1.25


def test_a_pause_of_an_hour_is_no_hang():
    watchdog = Watchdog(HANG)
    assert looks(watchdog, 0.5, first=1, last=3) is None
    assert not watchdog.look(0.5, 3_603)
    assert looks(watchdog, 0.5, first=3_604, last=3_605) is None


def test_a_pause_before_the_first_look_is_no_hang():
    watchdog = Watchdog(HANG)
    assert not watchdog.look(None, 0)
    assert not watchdog.look(0.5, 1_000)


def test_a_hang_is_found_after_a_pause_too():
    watchdog = Watchdog(HANG)
    looks(watchdog, 0.5, first=1, last=2)
    found = looks(watchdog, 0.5, first=1_000, last=1_060)
    assert found is not None
    assert found <= 1_000 + HANG


def test_batches_that_follow_each_other_are_no_hang():
    watchdog = Watchdog(HANG)
    assert not any(watchdog.look(now - 0.1, now) for now in range(100))


def test_nothing_hangs_where_nothing_runs():
    assert looks(Watchdog(HANG), None, first=0, last=100) is None
