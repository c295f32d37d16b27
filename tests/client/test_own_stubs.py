"""A caller's own stubs, generated from the same proto, live beside ours in one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CHECK = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
from rerank.v1 import rerank_pb2 as theirs
from rerank_grpc.v1 import rerank_pb2 as ours
message = theirs.RerankRequest(query="q", top_n=3)
assert ours.RerankRequest.FromString(message.SerializeToString()).top_n == 3
assert theirs.DESCRIPTOR.name == ours.DESCRIPTOR.name == "rerank/v1/rerank.proto"
"""


@pytest.fixture(scope="module")
def own_stubs(tmp_path_factory):
    out = tmp_path_factory.mktemp("stubs")
    outputs = [f"--python_out={out}", f"--grpc_python_out={out}"]
    command = [sys.executable, "scripts/protoc.py", "-Iproto", *outputs, "rerank/v1/rerank.proto"]
    subprocess.run(command, cwd=ROOT, check=True)
    return out


@pytest.mark.parametrize(
    "order",
    [
        ["rerank.v1.rerank_pb2_grpc", "rerank_grpc.v1.rerank_pb2_grpc", "rerank_grpc.client"],
        ["rerank_grpc.client", "rerank_grpc.v1.rerank_pb2_grpc", "rerank.v1.rerank_pb2_grpc"],
    ],
    ids=["theirs first", "ours first"],
)
def test_own_stubs_and_ours_are_imported_in_one_process(own_stubs, monkeypatch, order):
    monkeypatch.setenv("PYTHONPATH", str(own_stubs), prepend=os.pathsep)
    subprocess.run([sys.executable, "-c", CHECK, *order], check=True)
