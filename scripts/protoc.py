"""Runs the protoc that generates the stubs, with gRPC's plugin; takes protoc's own arguments.

    python scripts/protoc.py -Iproto --python_out=out --grpc_python_out=out rerank/v1/rerank.proto

The version in constraints.txt is that of the oldest protobuf supported: stubs refuse a protobuf and a grpcio
older than their generator. That generator asks for an older protobuf than the server has, so it is installed
apart, under .tools and without what it depends on, when it is first needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "grpcio-tools"


def pinned() -> str:
    """Reads the generator's version from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{PACKAGE}==")).partition("==")[2]


def installed() -> Path:
    """Returns the folder of the generator, which is installed there unless it is already."""
    folder = ROOT / ".tools" / f"{PACKAGE}-{pinned()}"
    if folder.exists():
        return folder
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        target = Path(made) / "site"
        command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--target", str(target), f"{PACKAGE}=={pinned()}"], check=True)
        try:
            target.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    return folder


def protoc(*arguments: str) -> int:
    """Runs protoc in this folder; returns its status. The files that protoc brings itself are found."""
    site = installed()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{site / 'grpc_tools' / '_proto'}", *arguments]
    return subprocess.run(command, env=environment).returncode


if __name__ == "__main__":
    sys.exit(protoc(*sys.argv[1:]))
