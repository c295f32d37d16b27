"""Python's own manual, of which texts of any length are made."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files


def manual() -> Iterable[str]:
    """Returns the manual's texts; where it is not installed, the catalogue of checkpoints as one text."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return [files("rerank_grpc").joinpath("checkpoints", "catalogue.toml").read_text("utf-8")]
    return topics.values()
