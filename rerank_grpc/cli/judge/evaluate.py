"""`rerank-grpc eval`: measures models by judged queries."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rerank_grpc.errors import ConfigurationError

EXAMPLES = """\
examples:
  rerank-grpc eval
"""
ARGUMENTS: tuple[tuple[str, Mapping[str, Any]], ...] = ()


def run(parsed: argparse.Namespace) -> int:
    """Raises ConfigurationError."""
    raise ConfigurationError("eval: not there yet")
