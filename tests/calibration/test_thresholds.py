"""A threshold reaches what is asked where it was chosen, nearly so where it is verified, or is not there."""

from __future__ import annotations

import numpy as np
import pytest

from rerank_grpc.evaluation.calibrating.calibrate import mapped
from rerank_grpc.evaluation.calibrating.fitting import fit
from rerank_grpc.evaluation.calibrating.thresholds import (
    DEFAULT_AIMS,
    Aim,
    figures_above,
    propose,
    wilson_interval,
)
from tests.calibration.drawn import drawn

FIT, HELD_OUT = drawn(20_000, 1), drawn(20_000, 2)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
@pytest.mark.parametrize("aim", DEFAULT_AIMS, ids=str)
def test_a_threshold_reaches_what_is_asked_on_both_halves(method, aim):
    found = fit(method, FIT.logits, FIT.relevant)
    of_fit, of_held_out = mapped(found, FIT), mapped(found, HELD_OUT)
    threshold = propose(aim, (FIT, of_fit), (HELD_OUT, of_held_out))
    assert threshold.calibrated_score is not None
    assert threshold.logit is not None
    assert threshold.relevance_score is not None
    above = of_fit >= threshold.calibrated_score
    precision, recall = figures_above(above, FIT.relevant)
    # An isotonic map has the same probability over a range of logits, all or none of which lie above.
    assert aim.asked <= {"precision": precision or 0, "recall": recall}[aim.name] <= aim.asked + 0.06
    assert getattr(threshold, aim.name) == pytest.approx(aim.asked, abs=0.06)
    chosen = of_held_out >= threshold.calibrated_score
    assert threshold.above == int(chosen.sum())
    bounds = wilson_interval(int((chosen & HELD_OUT.relevant).sum()), int(chosen.sum()))
    assert (threshold.precision_low, threshold.precision_high) == bounds
    # The three thresholds select the same pairs.
    assert np.array_equal(above, FIT.logits >= threshold.logit)
    assert np.array_equal(above, FIT.scores >= threshold.relevance_score)


def test_for_a_precision_it_is_the_lowest_and_for_a_recall_the_highest():
    probabilities = np.linspace(0.01, 1, 100)
    relevant = np.arange(100) >= 60
    relevant[70] = False
    pairs = drawn(100, 1)
    half = (type(pairs)(pairs.queries, probabilities, probabilities, relevant), probabilities)
    assert propose(Aim("precision", 0.976), half, half).calibrated_score == probabilities[71]
    assert propose(Aim("precision", 0.97), half, half).calibrated_score == probabilities[60]
    assert propose(Aim("recall", 1.0), half, half).calibrated_score == probabilities[60]
    assert propose(Aim("recall", 0.5), half, half).calibrated_score == probabilities[80]


def test_a_precision_that_no_threshold_reaches_has_none():
    random = drawn(1_000, 1)
    labels = type(random)(random.queries, random.logits, random.scores, np.arange(1_000) % 2 == 0)
    half = labels, random.scores
    assert propose(Aim("precision", 0.99), half, half).calibrated_score is None


def test_a_score_that_is_no_function_of_the_logit_gets_no_threshold():
    half = FIT, FIT.scores
    threshold = propose(Aim("recall", 0.9), half, half, monotone_score=False)
    assert threshold.relevance_score is None
    assert threshold.logit is not None


def test_a_score_that_is_the_same_for_pairs_below_gets_no_threshold():
    few = FIT.where(np.arange(1_000))
    saturated = type(FIT)(few.queries, few.logits, np.ones(1_000), few.relevant)
    half = saturated, few.scores
    assert propose(Aim("precision", 0.9), half, half).relevance_score is None
    assert propose(Aim("precision", 0.1), half, half).relevance_score == 1  # which selects every pair


# Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3
@pytest.mark.parametrize(
    ("found", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_precision_is_wilsons(found, count, low, high):
    assert wilson_interval(found, count) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(count - found, count) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_the_bounds_of_a_precision_hold_it_and_are_probabilities():
    for count in range(1, 60):
        for found in range(count + 1):
            low, high = wilson_interval(found, count)
            assert low is not None
            assert high is not None
            assert 0 <= low <= found / count <= high <= 1
    assert wilson_interval(0, 0) == (None, None)
