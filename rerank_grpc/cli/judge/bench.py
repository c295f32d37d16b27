"""`rerank-grpc bench`: puts load on a running server, and measures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rerank_grpc.errors import ConfigurationError

EXAMPLES = """\
examples:
  rerank-grpc bench
"""
ARGUMENTS: tuple[tuple[str, Mapping[str, Any]], ...] = ()


def run(parsed: argparse.Namespace) -> int:
    """Raises ConfigurationError."""
    raise ConfigurationError("bench: not there yet")
