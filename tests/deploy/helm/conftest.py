"""Fixtures of the chart's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.helm.common import TOKEN
from tests.deploy.kubernetes import VALUES, Object, render, values_of


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Object]]:
    return {name: render(values_of(name)) for name in ("", *VALUES)}


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"{TOKEN}\n")
    return path
