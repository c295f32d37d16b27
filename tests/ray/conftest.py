"""Skips what needs a cluster where Ray is not installed."""

from __future__ import annotations

import importlib.util
import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("ray") or os.environ.get("CI"):
        return
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.skip(reason='Ray is missing: pip install "rerank-grpc[ray]"'))
