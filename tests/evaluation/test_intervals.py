"""Intervals are repeatable, paired, and cover what they should."""

import numpy as np
import pytest

from rerank_grpc.evaluation.measures import ConfidenceInterval, intervals, outcome, resamples_of
from rerank_grpc.evaluation.report import FEW_QUERIES


def bounds(found: ConfidenceInterval) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def test_an_interval_is_that_of_the_means_distribution():
    values = np.random.default_rng(1).normal(0.5, 0.2, 400)
    (found,) = intervals([values])
    error = values.std() / np.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_the_interval_of_a_difference_is_paired_and_so_narrower():
    generator = np.random.default_rng(2)
    before = generator.uniform(0, 1, 200)
    after = before + generator.normal(0.05, 0.02, 200)
    of_before, of_after, of_difference = intervals([before, after, after - before])
    assert of_difference.mean == pytest.approx(of_after.mean - of_before.mean)
    assert bounds(of_difference)[0] > 0
    assert bounds(of_after)[0] < bounds(of_before)[1]  # unpaired, nothing could be said


def test_nineteen_of_twenty_intervals_hold_the_truth():
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        (found,) = intervals([generator.binomial(1, 0.4, 150).astype(float)], resamples=1_000)
        low, high = bounds(found)
        held += low <= 0.4 <= high
    assert 180 <= held <= 199


def test_the_same_values_give_the_same_interval_and_another_seed_another_one():
    values = [np.random.default_rng(4).uniform(0, 1, 50)]
    assert intervals(values) == intervals(values)
    assert intervals(values, seed=1) != intervals(values)


def test_one_query_has_no_interval():
    assert intervals([np.array([0.25])]) == [(0.25, None, None)]


def test_few_queries_have_intervals_that_are_too_narrow():
    generator = np.random.default_rng(5)
    held = {}
    for queries in (2, 5, FEW_QUERIES):
        drawn = [generator.normal(0.5, 0.2, queries) for _ in range(300)]
        found = [bounds(intervals([values], resamples=1_000)[0]) for values in drawn]
        held[queries] = sum(low <= 0.5 <= high for low, high in found) / 300
    assert held[2] < 0.65
    assert held[5] < 0.9 < held[FEW_QUERIES] + 0.03


def test_many_queries_take_fewer_resamples_and_give_the_interval_of_the_normal_distribution():
    assert resamples_of(5_000) > resamples_of(5_001)
    values = np.random.default_rng(6).normal(0.5, 0.2, 30_000)
    (found,) = intervals([values])
    error = values.std() / np.sqrt(len(values))
    low, high = bounds(found)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_resamples_are_those_of_drawn_queries():
    values = np.random.default_rng(7).uniform(0, 1, 30)
    drawn = np.random.default_rng(0).integers(30, size=(10_000, 30))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    assert intervals([values])[0] == pytest.approx((values.mean(), low, high), abs=1e-12)


def test_outcomes_count_queries():
    assert outcome(np.array([0.5, 0.0, -0.1, 1e-12, 0.2])) == (2, 2, 1)
