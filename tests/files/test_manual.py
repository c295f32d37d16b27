"""The manual's texts are there whether Python's manual is or not."""

from __future__ import annotations

import sys

import pytest

from rerank_grpc.files.manual import manual


def test_the_catalogue_stands_for_a_manual_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(map(len, manual())) > 100_000
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    (text,) = manual()
    assert len(text) > 5_000
