"""`rerank-grpc calibrate`: fits the map from logits to the probability of relevance."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rerank_grpc.errors import ConfigurationError

EXAMPLES = """\
examples:
  rerank-grpc calibrate
"""
ARGUMENTS: tuple[tuple[str, Mapping[str, Any]], ...] = ()


def run(parsed: argparse.Namespace) -> int:
    """Raises ConfigurationError."""
    raise ConfigurationError("calibrate: not there yet")
