"""A processor gets the best level whose instructions it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from rerank_grpc.config.settings import KERNEL_LEVELS
from rerank_grpc.kernels.levels import LEVELS, Level, levels_of, processor_features


def test_the_setting_knows_every_level_in_their_order() -> None:
    assert tuple(level.name for level in LEVELS) == KERNEL_LEVELS


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_a_processor_gets_the_best_level_whose_features_it_has(level: Level) -> None:
    assert levels_of(level.machine, {*level.needs, "fpu"})[0] == level
    for feature in level.needs:
        assert level not in levels_of(level.machine, level.needs - {feature})
    assert levels_of("riscv64", level.needs) == ()


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2\nbugs\t\t: spectre_v1\n", {"fpu", "avx2"}),
        ("flags\t: fpu avx2 fma\n\nflags\t: fpu avx2\n", {"fpu", "avx2"}),  # processors of two kinds
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", {"fp", "asimd", "asimddp"}),
        ("processor\t: 0\n", set()),
        ("", set()),
    ],
)
def test_features_are_those_that_all_processors_have(text: str, features: set[str], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert processor_features(tmp_path / "cpuinfo") == features


def test_a_processor_that_cannot_be_asked_has_no_features(tmp_path: Path) -> None:
    assert processor_features(tmp_path / "none") == frozenset()
