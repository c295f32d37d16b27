"""Figures agree with scikit-learn's, and with what a known disagreement must give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from rerank_grpc.calibration.calibration import CLEAR_AUC
from rerank_grpc.calibration.maps import PlattMap
from rerank_grpc.evaluation.calibrating.calibrate import mapped
from rerank_grpc.evaluation.calibrating.figures import (
    auc_interval,
    binned,
    ece_of_chance,
    expected_calibration_error,
    held_out_figures,
)
from rerank_grpc.evaluation.calibrating.fitting import fit_platt
from rerank_grpc.evaluation.calibrating.labelled import LabelledPairs
from tests.calibration.drawn import TRUTH, drawn

PAIRS = drawn(20_000, 5)
EXACT = mapped(TRUTH, PAIRS)


def test_exact_probabilities_have_the_error_of_chance_alone():
    few = drawn(500, 5)
    chance = ece_of_chance(mapped(TRUTH, few), 0)
    assert 0.01 < chance < 0.05
    assert expected_calibration_error(mapped(TRUTH, few), few.relevant) == pytest.approx(chance, abs=0.02)
    assert ece_of_chance(EXACT, 0) < 0.008
    assert expected_calibration_error(EXACT, PAIRS.relevant) < 0.012


def test_a_constant_has_the_error_of_its_distance_from_the_share():
    constant = np.full(len(PAIRS.relevant), 0.9)
    share = PAIRS.relevant.mean()
    assert expected_calibration_error(constant, PAIRS.relevant) == pytest.approx(0.9 - share)
    assert binned(constant, PAIRS.relevant).counts.tolist() == [len(constant)]


def test_bins_are_those_of_scikit_learn():
    observed, predicted = calibration_curve(PAIRS.relevant, EXACT, n_bins=10, strategy="quantile")
    bins = binned(EXACT, PAIRS.relevant)
    assert bins.observed == pytest.approx(observed)
    assert bins.predicted == pytest.approx(predicted)
    assert bins.counts.tolist() == [2_000] * 10


def test_equal_probabilities_share_a_bin_in_whatever_order_they_are():
    probabilities = np.repeat([0.1, 0.5], [700, 300])
    relevant = np.arange(1_000) % 3 == 0
    order = np.argsort(~relevant)
    error = expected_calibration_error(probabilities[order], relevant[order])
    assert error == pytest.approx(expected_calibration_error(probabilities, relevant))
    assert binned(probabilities, relevant).counts.tolist() == [700, 300]


def test_the_map_changes_no_area_but_the_other_figures():
    figures = held_out_figures(PAIRS, EXACT, 0)
    before, after = figures.before, figures.after
    assert after.auc == pytest.approx(before.auc, abs=1e-4)
    assert after.ece < before.ece / 5
    assert after.brier < before.brier


def test_logits_whose_scores_are_all_1_in_float32_are_told_apart():
    generator = np.random.default_rng(1)
    relevant = np.arange(2_000) % 5 == 0
    logits = np.where(relevant, 26, 22) + generator.normal(0, 2, 2_000)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32).astype(np.float64)
    assert roc_auc_score(relevant, scores) < CLEAR_AUC  # nearly every score is 1
    pairs = LabelledPairs(np.arange(2_000) // 10, logits, scores, relevant)
    figures = held_out_figures(pairs, mapped(fit_platt(logits, relevant), pairs), 0)
    assert figures.before.auc == roc_auc_score(relevant, logits) > 0.9
    assert figures.after.auc == pytest.approx(figures.before.auc, abs=1e-4)
    assert figures.auc_low < figures.before.auc < figures.auc_high
    assert figures.clean_separation
    assert figures.before.ece == expected_calibration_error(scores, relevant) > 0.7


def test_a_score_that_orders_otherwise_than_the_logit_changes_its_own_error_alone():
    # As of late interaction, whose score depends on the query's length as well.
    few = drawn(1_000, 5)
    mixed = replace(few, scores=np.random.default_rng(1).permutation(few.scores))
    of_mixed, plain = (held_out_figures(pairs, mapped(TRUTH, few), 0) for pairs in (mixed, few))
    assert of_mixed.before.brier > plain.before.brier
    assert replace(of_mixed, before=replace(plain.before)) == plain
    assert of_mixed.before.auc == plain.before.auc


def test_the_interval_holds_the_area_and_is_that_of_queries():
    area = roc_auc_score(PAIRS.relevant, PAIRS.logits)
    low, high = auc_interval(PAIRS, 0, 300)
    assert low < area < high
    assert high - low < 0.02
    # Ten copies of each pair under one query tell no more than one does.
    small = drawn(400, 5)
    copies = small.where(np.repeat(np.arange(400), 10))
    assert auc_interval(copies, 0, 300) == pytest.approx(auc_interval(small, 0, 300), abs=1e-9)


def test_the_interval_covers_the_true_area_about_as_often_as_it_says():
    truth = PlattMap(0.4, 0.0)
    many = drawn(200_000, 1, truth)
    area = roc_auc_score(many.relevant, many.logits)
    covered = 0
    for seed in range(60):
        low, high = auc_interval(drawn(600, 100 + seed, truth), seed, 200)
        covered += low <= area <= high
    assert 50 <= covered <= 60
