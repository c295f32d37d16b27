"""Pairs for tests whose labels are drawn by a known map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rerank_grpc.calibration.calibration import LabelRule, ScoringOptions
from rerank_grpc.calibration.maps import PlattMap
from rerank_grpc.evaluation.calibrating.calibrate import FitOptions, FittedCalibration, calibrate
from rerank_grpc.evaluation.calibrating.labelled import LabelledPairs
from tests.calibration.made import MODEL

RULE = LabelRule(1, "irrelevant")
TRUTH = PlattMap(1.7, -2.1)


def drawn(count: int, seed: int, truth: PlattMap = TRUTH, *, per_query: int = 10) -> LabelledPairs:
    """Draws logits, and labels by the map's probabilities; the score is the logit's own sigmoid."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, count)
    relevant = generator.random(count) < np.array(truth.probabilities(logits.tolist()))
    queries = np.repeat(np.arange(count // per_query), per_query)
    return LabelledPairs(queries, logits, 1 / (1 + np.exp(-logits)), relevant)


def shuffled(pairs: LabelledPairs, seed: int = 7) -> LabelledPairs:
    """Gives each pair the label of another."""
    return replace(pairs, relevant=np.random.default_rng(seed).permutation(pairs.relevant))


def fitted(pairs: LabelledPairs, **options) -> FittedCalibration:
    """Fits a map, and measures it."""
    return calibrate(pairs, MODEL, RULE, ScoringOptions(), FitOptions(**options))
