"""Calibrations for tests."""

from __future__ import annotations

from rerank_grpc.calibration.calibration import (
    CalibratedModel,
    Calibration,
    Fidelity,
    HeldOutFigures,
    LabelRule,
    PairCounts,
    ProposedThreshold,
    ScoringOptions,
)
from rerank_grpc.calibration.maps import IsotonicMap, PlattMap
from rerank_grpc.types import Scoring, Truncation

MODEL = CalibratedModel("embedded", "", "sha256:0123", "bert", Scoring.COSINE, "fp32")
PLATT = PlattMap(3.0, -1.5)
ISOTONIC = IsotonicMap(((-1.0, 0.0625), (0.0, 0.25), (0.5, 0.25), (2.0, 0.875)))


def made(map: PlattMap | IsotonicMap = PLATT, model: CalibratedModel = MODEL) -> Calibration:
    """Makes a calibration with every field filled."""
    return Calibration(
        made="2026-11-30T18:00:00Z",
        made_by="rerank-grpc 0.0.0",
        model=model,
        options=ScoringOptions("Judge «it».", 200, Truncation.START, 4),
        map=map,
        labels=LabelRule(1, "irrelevant"),
        fitted_on=PairCounts(50, 60, 440),
        held_out=PairCounts(50, 61, 439),
        figures=HeldOutFigures(15, Fidelity(0.4, 0.3, 0.9), Fidelity(0.02, 0.1, 0.9), 0.01, 0.85, 0.94, True),
        thresholds=(
            ProposedThreshold("precision", 0.9, 0.8, 0.7, 1.5, 22, 0.909, 0.722, 0.975, 0.328),
            ProposedThreshold("recall", 1.0, *[None] * 8),
        ),
    )
