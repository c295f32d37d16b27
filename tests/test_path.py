"""How long the path of a request is, counted in calls of our own functions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_CALLS = {"grpc": 205, "rest": 390}  # a call over REST has a record of its own


def test_three_documents_are_answered_by_few_of_our_functions():
    traced = subprocess.run(
        [sys.executable, "-m", "benchmarks.trace", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    calls = json.loads(traced.stdout)
    assert {path: count for path, count in calls.items() if count > MOST_CALLS[path]} == {}
