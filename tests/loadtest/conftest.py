"""Patience with drivers on a busy machine."""

import pytest

from tests.loadtest.support import BEHIND_SECONDS, DRIVER


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a driver be late."""
    monkeypatch.setattr(f"{DRIVER}.BEHIND_SECONDS", BEHIND_SECONDS)
