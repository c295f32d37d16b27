"""A calibration is laid out with its pairs and bounds, and no printed threshold lies above the file's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rerank_grpc.calibration.calibration import Calibration
from rerank_grpc.cli.judge.calibration_text import described
from rerank_grpc.cli.terminal import Screen
from tests.calibration.made import made

PRECISION, UNREACHED = made().thresholds
COLUMNS = ("calibrated_score", "relevance_score", "logit")


def rows(found: Calibration) -> list[list[str]]:
    """Lays out a calibration; returns the cells of its thresholds."""
    lines = [line.split("  ") for line in described(found, Screen())]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return [line for line in cells if line and line[0].startswith(("precision ", "recall "))]


def test_a_threshold_stands_with_its_pairs_and_the_bounds_of_its_precision():
    assert rows(made()) == [
        ["precision 0.9", "0.8000", "0.7000", "1.5", "22", "0.909", "0.722 to 0.975", "0.328"],
        ["recall 1", "not reachable"],
    ]


def test_a_threshold_above_which_no_held_out_pair_lies_says_so():
    nothing = replace(PRECISION, above=0, precision=None, precision_low=None, precision_high=None, recall=0.0)
    (row,) = rows(replace(made(), thresholds=(nothing,)))
    assert row[4:] == ["0", "no pair", "0.000"]


@pytest.mark.parametrize("value", [0.687659, 0.99999999, 1.23456789e-5, 0.53401, 1 / 3])
@pytest.mark.parametrize("scale", [1, -1, 1e6])
def test_printed_thresholds_are_rounded_down(value, scale):
    each = replace(PRECISION, calibrated_score=value, relevance_score=value, logit=value * scale)
    (row,) = rows(replace(made(), thresholds=(each,)))
    for name, printed in zip(COLUMNS, row[1:4], strict=True):
        exact = getattr(each, name)
        assert float(printed) <= exact
        assert float(printed) == pytest.approx(exact, abs=1e-4 * max(1, abs(exact)))
