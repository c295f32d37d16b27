"""From labelled pairs to a calibration: split, fitted, measured, with thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from rerank_grpc import __version__
from rerank_grpc.calibration.calibration import (
    CalibratedModel,
    Calibration,
    LabelRule,
    ScoringOptions,
)
from rerank_grpc.calibration.maps import IsotonicMap, PlattMap
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.evaluation.calibrating.figures import held_out_figures
from rerank_grpc.evaluation.calibrating.fitting import fit
from rerank_grpc.evaluation.calibrating.labelled import LabelledPairs, halves
from rerank_grpc.evaluation.calibrating.thresholds import DEFAULT_AIMS, Aim, propose
from rerank_grpc.types import Scoring


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a map is fitted and what is asked of it; `seed` decides which queries are held out."""

    method: str = PlattMap.method
    seed: int = 0
    aims: Sequence[Aim] = DEFAULT_AIMS


@dataclass(frozen=True, slots=True, eq=False)
class FittedCalibration:
    """A calibration, and the held-out pairs that measured it, with their probabilities."""

    calibration: Calibration
    fitted_on: LabelledPairs
    held_out: LabelledPairs
    probabilities: npt.NDArray[np.float64]

    @property
    def separated(self) -> bool:
        """Whether a logit parts the relevant pairs of the fit from the others without an exception."""
        pairs = self.fitted_on
        return bool(pairs.logits[pairs.relevant].min() > pairs.logits[~pairs.relevant].max())


def calibrate(
    pairs: LabelledPairs,
    model: CalibratedModel,
    rule: LabelRule,
    scored_with: ScoringOptions,
    options: FitOptions,
) -> FittedCalibration:
    """Fits on half of the queries, and measures that very map on the other half.

    Thresholds are proposed only where scores separate. Raises ConfigurationError where pairs are too few, or
    all logits are equal.
    """
    if np.ptp(pairs.logits) == 0:
        raise ConfigurationError(
            f"all {len(pairs.logits):,} logits are {pairs.logits[0]:g}: this model tells no pair from another"
        )
    fitted_on, held_out = halves(pairs, rule, options.seed)
    found = fit(options.method, fitted_on.logits, fitted_on.relevant)
    of_fit, of_held_out = mapped(found, fitted_on), mapped(found, held_out)
    figures = held_out_figures(held_out, of_held_out, options.seed)
    monotone = model.scoring is not Scoring.MAXSIM  # whose score depends on the query's length as well
    thresholds = [
        propose(aim, (fitted_on, of_fit), (held_out, of_held_out), monotone_score=monotone)
        for aim in options.aims
        if figures.clean_separation
    ]
    made = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    calibration = Calibration(
        made=made,
        made_by=f"rerank-grpc {__version__}",
        model=model,
        options=scored_with,
        map=found,
        labels=rule,
        fitted_on=fitted_on.counts,
        held_out=held_out.counts,
        figures=figures,
        thresholds=tuple(thresholds),
    )
    return FittedCalibration(calibration, fitted_on, held_out, of_held_out)


def mapped(found: PlattMap | IsotonicMap, pairs: LabelledPairs) -> npt.NDArray[np.float64]:
    """Maps logits as the service does, in float32."""
    return np.array(found.probabilities(pairs.logits.tolist()))
