"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from rerank_grpc.client import Reason
from tests.client.scripted_server import fail

ROOT = Path(__file__).parents[2]
EXAMPLES = pytest.mark.parametrize("example", ["python_client.py", "python_stub.py"])


def run(example, target):
    environment = {**os.environ, "RERANK_TOKEN": "s3cret"}
    if example == "python_stub.py":  # its channel is gRPC's own, and obeys gRPC's own rule
        environment["no_grpc_proxy"] = "127.0.0.1"
    command = [sys.executable, "-W", "error", ROOT / "clients" / "examples" / example, target]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@EXAMPLES
def test_an_example_prints_the_documents_with_their_scores(server, example):
    done = run(example, server.target)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "1.0000  Bamboo is what pandas eat."
    assert server.calls[0].metadata["authorization"] == "Bearer s3cret"
    assert server.calls[0].request.top_n == 2


@EXAMPLES
def test_an_example_says_why_a_call_failed(server, example):
    server.otherwise = fail(grpc.StatusCode.NOT_FOUND, "no such model", reason=Reason.UNKNOWN_MODEL)
    done = run(example, server.target)
    assert done.returncode == 1
    assert "no such model" in done.stderr
    assert "UnknownModel" in done.stderr or "ERROR_REASON_UNKNOWN_MODEL" in done.stderr
