"""A map holds for the revision, the scoring and the number format that it was fitted on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rerank_grpc.types import Scoring
from tests.calibration.made import MODEL, made

REVISION = MODEL.revision


def test_the_model_that_it_was_fitted_on_fits():
    assert made().mismatch(revision=REVISION) == ""
    assert made().mismatch(revision=REVISION, scoring=Scoring.COSINE, precision="fp32") == ""


def test_precisions_of_floating_point_count_as_one():
    assert made().mismatch(revision=REVISION, precision="bf16") == ""
    assert "precision fp32, and the model runs at int8:" in made().mismatch(
        revision=REVISION, precision="int8"
    )


@pytest.mark.parametrize("revision", ["", "sha256:4567"])
def test_another_revision_does_not_fit(revision):
    said = made().mismatch(revision=revision, scoring=Scoring.COSINE, precision="fp32")
    assert f"revision {REVISION} of embedded" in said
    assert (revision or "(none)") in said
    assert "`rerank-grpc calibrate --model embedded`" in said


COMMIT = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"


@pytest.mark.parametrize(
    ("fitted", "loaded", "told"),
    [
        (COMMIT, "sha256:0123", True),  # the same weights may have moved
        ("sha256:0123", COMMIT, True),
        (COMMIT, COMMIT[::-1], False),
        ("sha256:0123", "sha256:4567", False),
        (COMMIT, "", False),
    ],
)
def test_a_copy_outside_the_hubs_cache_is_told_where_it_may_be_one(fitted, loaded, told):
    said = made(model=replace(MODEL, revision=fitted)).mismatch(revision=loaded)
    assert f"revision {fitted} of embedded" in said
    assert "\n" not in said
    assert ("a copy outside the hub's cache has another revision" in said) is told
    assert ("--model embedded --target HOST:PORT`" in said) is told


def test_another_scoring_does_not_fit():
    assert "by cosine, and the model's are by sigmoid" in made().mismatch(
        revision=REVISION, scoring=Scoring.SIGMOID
    )
