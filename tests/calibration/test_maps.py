"""Maps are monotone at every logit, stay within [0, 1], and cost little."""

from __future__ import annotations

import math
import random
import struct

import pytest

from rerank_grpc.calibration.maps import LARGEST_LOGIT, MOST_KNOTS, BadField, IsotonicMap, PlattMap
from tests.calibration.made import ISOTONIC, PLATT

FAR = [-math.inf, -LARGEST_LOGIT, -1e9, -750.0, -1.0, -0.0, 0.0, 1e-300, 1.0, 750.0, 1e9, LARGEST_LOGIT]
FAR.append(math.inf)
MAPS = [
    PLATT,
    PlattMap(0.0, 0.3),
    PlattMap(1e6, -1e6),
    PlattMap(LARGEST_LOGIT, -LARGEST_LOGIT),
    PlattMap(1e-300, 0.0),
    ISOTONIC,
    IsotonicMap(((0.0, 0.5),)),
    IsotonicMap(((-LARGEST_LOGIT, 0.1), (LARGEST_LOGIT, 0.9))),
    IsotonicMap(((0.0, 0.1), (5e-324, 0.7), (0.3, 0.7000001))),
]


def float32(value: float) -> float:
    """Rounds to float32."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


@pytest.mark.parametrize("each", MAPS, ids=repr)
def test_probabilities_are_monotone_and_in_float32(each):
    generator = random.Random(1)
    near = [generator.gauss(0, scale) for scale in (1e-9, 0.1, 1, 10, 1e4) for _ in range(2_000)]
    probabilities = each.probabilities(sorted(FAR + near))
    assert probabilities == sorted(probabilities)
    assert probabilities[0] >= 0
    assert probabilities[-1] <= 1
    assert all(map(math.isfinite, probabilities))
    assert probabilities == [float32(probability) for probability in probabilities]


@pytest.mark.parametrize("each", MAPS, ids=repr)
def test_not_a_number_counts_as_the_lowest_logit(each):
    assert each.probabilities([math.nan]) == each.probabilities([-math.inf])


def test_platts_map_is_the_sigmoid():
    logits = [-2.0, 0.0, 0.5, 3.0]
    expected = [float32(1 / (1 + math.exp(-(3 * logit - 1.5)))) for logit in logits]
    assert PLATT.probabilities(iter(logits)) == pytest.approx(expected, abs=1e-7)


def test_between_knots_is_a_line_and_beyond_them_a_constant():
    logits = [-9.0, -1.0, -0.5, 0.0, 0.2, 0.5, 1.25, 2.0, 9.0]
    expected = [0.0625, 0.0625, 0.15625, 0.25, 0.25, 0.25, 0.5625, 0.875, 0.875]
    assert ISOTONIC.probabilities(logits) == expected


@pytest.mark.parametrize(
    ("slope", "intercept", "name"),
    [(-1e-9, 0, "slope"), (math.nan, 0, "slope"), (math.inf, 0, "slope"), (1, math.nan, "intercept")],
)
def test_a_sigmoid_that_falls_is_refused(slope, intercept, name):
    with pytest.raises(BadField, match=name):
        PlattMap(slope, intercept)


@pytest.mark.parametrize(
    ("knots", "place"),
    [
        ((), "knots"),
        (((0.0, 0.2), (0.0, 0.3)), r"knots\[1\]"),
        (((0.0, 0.2), (1.0, 0.1)), r"knots\[1\]"),
        (((0.0, 1.1),), r"knots\[0\]"),
        (((0.0, math.nan),), r"knots\[0\]"),
        (((math.nan, 0.1),), r"knots\[0\]"),
        (((1e39, 0.1),), r"knots\[0\]"),
        (tuple((float(each), 0.5) for each in range(MOST_KNOTS + 1)), "knots"),
    ],
)
def test_knots_that_fall_are_refused(knots, place):
    with pytest.raises(BadField, match=place):
        IsotonicMap(knots)
