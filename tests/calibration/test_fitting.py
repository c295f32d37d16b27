"""A fit recovers the map by which labels were drawn, and stays bounded where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from rerank_grpc.calibration.maps import MOST_KNOTS, IsotonicMap, PlattMap
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.evaluation.calibrating.calibrate import mapped
from rerank_grpc.evaluation.calibrating.figures import expected_calibration_error
from rerank_grpc.evaluation.calibrating.fitting import fit, fit_isotonic, fit_platt
from tests.calibration.drawn import TRUTH, drawn, fitted, shuffled

FRESH = drawn(100_000, 999)


def fresh_error(found: PlattMap | IsotonicMap) -> float:
    """The calibration error on pairs that neither half holds."""
    return expected_calibration_error(mapped(found, FRESH), FRESH.relevant)


@pytest.mark.parametrize("seed", range(8))
def test_of_2000_pairs_platts_fit_recovers_the_map(seed):
    found = fitted(drawn(2_000, seed), seed=seed).calibration.map
    assert isinstance(found, PlattMap)
    assert found.slope == pytest.approx(TRUTH.slope, abs=0.25)
    assert found.intercept == pytest.approx(TRUTH.intercept, abs=0.3)
    assert fresh_error(found) <= 0.02


@pytest.mark.parametrize("seed", range(4))
def test_isotonic_regression_follows_any_monotone_map(seed):
    found = fitted(drawn(8_000, seed), seed=seed, method="isotonic").calibration.map
    assert isinstance(found, IsotonicMap)
    assert fresh_error(found) <= 0.02


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_shuffled_labels_are_no_clean_separation_and_carry_no_threshold(method):
    calibration = fitted(shuffled(drawn(2_000, 1)), method=method).calibration
    assert not calibration.figures.clean_separation
    assert calibration.figures.auc_low < 0.5 < calibration.figures.auc_high
    assert calibration.thresholds == ()
    share = FRESH.relevant.mean()  # a constant of it has this Brier score, and a good fit half of it
    assert brier_score_loss(FRESH.relevant, mapped(calibration.map, FRESH)) > 0.85 * share * (1 - share)
    good = fitted(drawn(2_000, 1), method=method).calibration.map
    assert brier_score_loss(FRESH.relevant, mapped(good, FRESH)) < 0.6 * share * (1 - share)


def test_the_check_of_a_good_fit_fails_for_inverted_labels():
    pairs = drawn(2_000, 1)
    assert fresh_error(fitted(replace(pairs, relevant=~pairs.relevant)).calibration.map) > 0.1


def test_logits_that_are_all_equal_are_refused():
    pairs = drawn(400, 1)
    with pytest.raises(ConfigurationError, match=r"all 400 logits are 1\.5: this model tells no pair"):
        fitted(replace(pairs, logits=np.full(400, 1.5)))
    half = fit_platt(np.full(400, 1.5), pairs.relevant)  # of all queries, some differ
    assert half.probabilities([0.0]) == pytest.approx([pairs.relevant.mean()], abs=0.005)


def test_labels_that_run_against_the_logit_give_a_constant():
    pairs = drawn(2_000, 1)
    found = fit_platt(-pairs.logits, pairs.relevant)
    share = float(pairs.relevant.mean())
    assert found.slope == 0
    assert found.probabilities([-9.0, 9.0]) == pytest.approx([share] * 2, abs=1e-3)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_labels_that_are_separated_keep_probabilities_within_what_their_number_shows(method):
    logits = np.concatenate([np.linspace(-3, -1, 50), np.linspace(1, 3, 50)])
    found = fit(method, logits, logits > 0)
    low, *_, high = found.probabilities([-3.0, -1.0, 1.0, 3.0])
    assert 0 < low < 0.05
    assert 0.95 < high < 1
    least, most = found.probabilities([-1e9, 1e9])
    assert (least, most) == ((0, 1) if method == "platt" else (low, high))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_fit_does_not_depend_on_the_unit_of_logits(scale):
    pairs = drawn(2_000, 3)
    found = fit_platt(pairs.logits * scale + 5 * scale, pairs.relevant)
    plain = fit_platt(pairs.logits, pairs.relevant)
    expected = plain.probabilities(pairs.logits.tolist())
    assert found.probabilities((pairs.logits * scale + 5 * scale).tolist()) == pytest.approx(
        expected, abs=1e-5
    )


def test_a_line_of_too_many_knots_is_thinned():
    logits = np.arange(20_000, dtype=np.float64)
    generator = np.random.default_rng(1)
    found = fit_isotonic(logits, generator.random(len(logits)) < logits / len(logits))
    assert 10 < len(found.knots) <= MOST_KNOTS
