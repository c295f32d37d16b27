"""A calibration: the map, the model and the options that it holds for, and how good it was."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from rerank_grpc.calibration.maps import BadField, IsotonicMap, PlattMap
from rerank_grpc.limits import LIMITS
from rerank_grpc.types import Scoring, Truncation

CLEAR_AUC = 0.7  # below, scores of relevant and irrelevant pairs overlap too much for a threshold
FLOATS = frozenset({"fp32", "bf16", "fp16"})  # their logits differ by less than a map's own error
_UNIT = "a number from 0 to 1 is expected"
_PRECISION = ("precision_low", "precision", "precision_high")
_MOST_TOKENS = 2**32 - 1  # the contract's uint32
# RFC 3339 is narrower than ISO 8601: a date with dashes, a time with seconds, and an offset.
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.\d+)?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # a terminal obeys them, or breaks a line there


@dataclass(frozen=True, slots=True)
class CalibratedModel:
    """The model whose logits were mapped, as ListModels described it.

    `name` is the name that was asked for, `revision` a commit or a digest of the weights. Raises BadField.
    """

    name: str
    hub_id: str
    revision: str
    family: str
    scoring: Scoring
    precision: str

    def __post_init__(self) -> None:
        if not self.name:
            raise BadField("name", "the model's name is expected")
        if not self.revision:
            raise BadField("revision", "a commit or a digest of the weights is expected")
        for field in ("name", "hub_id", "revision", "family", "precision"):
            _check_line(field, getattr(self, field))


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """The options of a request that change logits; a map holds for requests with the same ones.

    Defaults are those of a request that names none. Raises BadField.
    """

    instruction: str = ""
    max_tokens_per_document: int = 0
    truncation: Truncation = Truncation.END
    max_chunks_per_document: int = 1

    def __post_init__(self) -> None:
        _check_text("instruction", self.instruction)
        if not 0 <= self.max_tokens_per_document <= _MOST_TOKENS:
            raise BadField("max_tokens_per_document", f"a number from 0 to {_MOST_TOKENS:,} is expected")
        if not 1 <= self.max_chunks_per_document <= LIMITS.chunks:
            raise BadField("max_chunks_per_document", f"a number from 1 to {LIMITS.chunks} is expected")


@dataclass(frozen=True, slots=True)
class PairCounts:
    """How many queries and pairs a map was fitted on, or measured on."""

    queries: int
    relevant: int
    irrelevant: int


@dataclass(frozen=True, slots=True)
class LabelRule:
    """The rule by which a pair counted as relevant: a grade of at least this, and what unjudged ones were.

    `unjudged` is "irrelevant" or "left-out". Raises BadField.
    """

    relevant_from: int
    unjudged: str

    def __post_init__(self) -> None:
        if self.unjudged not in ("irrelevant", "left-out"):
            raise BadField("unjudged", '"irrelevant" or "left-out" is expected')


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How far probabilities agree with labels: expected calibration error, Brier score, area under the ROC.

    Raises BadField.
    """

    ece: float
    brier: float
    auc: float

    def __post_init__(self) -> None:
        for name in ("ece", "brier", "auc"):
            _check_unit(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class HeldOutFigures:
    """Figures on the held-out queries: of relevance_score taken as a probability, and of the map.

    `bins` is the number of bins of the expected calibration error, and `ece_of_chance` the error that exact
    probabilities would show with as many pairs; the area before the map is that of the logit, `auc_low` and
    `auc_high` bound it with 95 % confidence. Raises BadField.
    """

    bins: int
    before: Fidelity
    after: Fidelity
    ece_of_chance: float
    auc_low: float
    auc_high: float
    clean_separation: bool

    def __post_init__(self) -> None:
        for name in ("ece_of_chance", "auc_low", "auc_high"):
            _check_unit(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class ProposedThreshold:
    """A threshold for an asked precision or recall, and both figures above it on the held-out queries.

    `above` counts the held-out pairs above it, and `precision_low` and `precision_high` bound the precision
    with 95 % confidence. The thresholds are None where the fit found none that reaches what was asked, and a
    figure is None where nothing lies above. `aim` is "precision" or "recall". Raises BadField.
    """

    aim: str
    asked: float
    calibrated_score: float | None
    relevance_score: float | None
    logit: float | None
    above: int | None
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    recall: float | None

    def __post_init__(self) -> None:
        if self.aim not in ("precision", "recall"):
            raise BadField("aim", '"precision" or "recall" is expected')
        for name in ("asked", "calibrated_score", "relevance_score", "recall", *_PRECISION):
            _check_unit(name, getattr(self, name))


@dataclass(frozen=True, slots=True)
class Calibration:
    """A monotone map from a model's logit to the probability of relevance, and all that it depends on.

    `made` is a time by RFC 3339; `made_by` names the program and its version. Raises BadField.
    """

    made: str
    made_by: str
    model: CalibratedModel
    options: ScoringOptions
    map: PlattMap | IsotonicMap
    labels: LabelRule
    fitted_on: PairCounts
    held_out: PairCounts
    figures: HeldOutFigures
    thresholds: tuple[ProposedThreshold, ...]

    def __post_init__(self) -> None:
        _check_line("made_by", self.made_by)
        if not _is_time(self.made):
            raise BadField("made", "a time by RFC 3339 is expected, such as 2026-11-30T18:00:00Z")

    def probabilities(self, logits: Iterable[float]) -> list[float]:
        """Maps logits to probabilities in [0, 1], rounded to float32; a higher logit never gets less."""
        return self.map.probabilities(logits)

    def mismatch(self, *, revision: str, scoring: Scoring | None = None, precision: str = "") -> str:
        """Says why the map does not hold for a model that is loaded; "" if it does.

        Precisions of floating point count as one. An empty precision, or no scoring, is not compared.
        """
        fitted = self.model
        remedy = f"run `rerank-grpc calibrate --model {fitted.name}` on the one that is served"
        if revision != fitted.revision:
            if revision and _is_digest(revision) is not _is_digest(fitted.revision):
                remedy = (
                    "a copy outside the hub's cache has another revision: calibrate it where it is served: "
                    f"`rerank-grpc calibrate --model {fitted.name} --target HOST:PORT`"
                )
            return (
                f"it was fitted on revision {fitted.revision} of {fitted.name}, "
                f"and the model has revision {revision or '(none)'}: {remedy}"
            )
        if scoring is not None and scoring is not fitted.scoring:
            return (
                f"it was fitted on scores by {fitted.scoring.value}, "
                f"and the model's are by {scoring.value}: {remedy}"
            )
        if precision and _number_format(precision) != _number_format(fitted.precision):
            return (
                f"it was fitted at precision {fitted.precision}, and the model runs at {precision}: {remedy}"
            )
        return ""


def _is_digest(revision: str) -> bool:
    return revision.startswith("sha256:")  # of weights in a folder; the hub's cache has commits


def _number_format(precision: str) -> str:
    return "float" if precision in FLOATS else precision


def _check_unit(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise BadField(name, _UNIT)


def _check_text(name: str, text: str) -> None:
    if _SURROGATE.search(text):
        raise BadField(name, "holds a lone surrogate; a text that UTF-8 can hold is expected")


def _check_line(name: str, text: str) -> None:
    _check_text(name, text)
    if _CONTROL.search(text):
        raise BadField(name, "a text without control characters is expected")


def _is_time(text: str) -> bool:
    found = _TIME.fullmatch(text)
    if found is None:
        return False
    try:
        datetime.fromisoformat(f"{found[1]}T{found[2]}")
    except ValueError:  # the 30th of February
        return False
    return True
