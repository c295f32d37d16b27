"""The times of calls are planned before the first of them."""

import itertools
import random
import statistics

import pytest

from rerank_grpc.errors import ConfigurationError
from rerank_grpc.loadtest.plan import PlannedCall, arrivals, recorded


def plan(kind="poisson", rate=50.0, warm_up=2.0, seconds=400.0, seed=1, first=7):
    return arrivals(kind, rate, warm_up, seconds, random.Random(seed), first)


def test_poisson_gaps_have_the_rates_mean_and_as_much_deviation():
    calls = plan()
    gaps = [after.at - before.at for before, after in itertools.pairwise(calls)]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.05)


def test_constant_arrivals_keep_their_distance():
    calls = plan("constant", rate=4.0, warm_up=1.0, seconds=2.0)
    assert [round(call.at, 9) for call in calls] == [-0.75 + 0.25 * place for place in range(11)]


def test_a_plan_begins_in_the_warm_up_and_ends_with_the_measured_time():
    calls = plan()
    assert -2 < calls[0].at < -1.5
    assert 399.5 < calls[-1].at < 400
    assert [call.number for call in calls] == list(range(7, 7 + len(calls)))


def test_a_seed_gives_the_same_plan_again():
    assert plan(seed=3) == plan(seed=3) != plan(seed=4)


def test_recorded_times_count_from_the_first_and_go_faster_when_asked():
    found = recorded([100.0, 101.0, 104.0], warm_up=0.5, speed=2.0, most=1.5)
    assert found.calls == [PlannedCall(-0.5, 0), PlannedCall(0.0, 1)]
    assert (found.warm_up, found.seconds, found.left_out) == (0.5, 1.5, 1)


def test_a_recording_is_measured_whole_and_its_calls_fill_as_many_gaps() -> None:
    found = recorded([7.0 + place / 2 for place in range(6)], warm_up=0.0, speed=1.0, most=None)
    assert (len(found.calls), found.seconds, found.rate, found.left_out) == (6, 3.0, 2.0, 0)
    warm = recorded([7.0 + place / 2 for place in range(6)], warm_up=0.3, speed=1.0, most=None)
    assert (warm.warm_up, warm.calls[1].at, warm.seconds, warm.rate) == (0.5, 0.0, 2.5, 2.0)
    lone = recorded([7.0, 7.0], warm_up=0.0, speed=1.0, most=None)
    assert (lone.seconds, lone.rate) == (1.0, 2.0)


def test_a_recording_within_the_warm_up_is_refused() -> None:
    said = r"--replay: none of the 11 calls, which take 1 s, lies behind the --warm-up of 5 s: give a shorter"
    with pytest.raises(ConfigurationError, match=said):
        recorded([place / 10 for place in range(11)], warm_up=5.0, speed=1.0, most=None)
