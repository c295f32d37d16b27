"""The reliability diagram is drawn for any model's name, and for scores that say nothing."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from rerank_grpc.evaluation.calibrating.chart import reliability_png
from tests.calibration.drawn import drawn, fitted, shuffled


@pytest.mark.parametrize("name", ["embedded", "a$b$ \\frac", "模型", "x" * 300])
def test_any_name_is_drawn(name):
    done = fitted(drawn(400, 1))
    found = replace(done.calibration, model=replace(done.calibration.model, name=name))
    picture = reliability_png(found, done.held_out, done.probabilities)
    assert picture.startswith(b"\x89PNG\r\n")
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height) == (1155, 682)


def test_scores_without_separation_are_drawn():
    done = fitted(shuffled(drawn(2_000, 1)), method="isotonic")
    assert len(reliability_png(done.calibration, done.held_out, done.probabilities)) > 10_000
