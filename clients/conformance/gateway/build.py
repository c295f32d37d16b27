"""Builds a grpc-gateway of the contract and of proto/rerank/v1/rerank_gateway.yaml, by Debian's packages.

    python -m clients.conformance.gateway.build     builds it and prints where it is

Debian has version 1.6, of 2020, with the protobuf of that time. Its packages are unpacked under .tools, not
installed: the Go client is built with a newer protobuf at the same place. That generator knows no `optional`:
the one field that has it goes without, which changes no byte of a message that has a bound.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from clients.conformance.contract.tools import Missing
from clients.conformance.run import ROOT

HERE = Path(__file__).resolve().parent
BUILT = ROOT / ".tools" / "gateway"
UNPACKED = BUILT / "debian"
PROTO = "rerank/v1/rerank.proto"
RULES = ROOT / "proto" / "rerank" / "v1" / "rerank_gateway.yaml"
# Where that protobuf has what the newer one has elsewhere.
IMPORTS = "Mgoogle/protobuf/duration.proto=github.com/golang/protobuf/ptypes/duration"
PACKAGES = (
    "golang-grpc-gateway",
    "golang-github-grpc-ecosystem-grpc-gateway-dev",
    "golang-github-golang-protobuf-1-3-dev",
    "protoc-gen-go-1-3",
    "golang-google-grpc-dev",
    "golang-google-genproto-dev",
    "golang-golang-x-net-dev",
    "golang-golang-x-sys-dev",
    "golang-golang-x-text-dev",
)


def build() -> Path:
    """Returns the program; raises Missing where Go or Debian's packages are."""
    if shutil.which("go") is None:
        raise Missing("no Go: apt-get install golang-go")
    unpack()
    go = BUILT / "go"
    shutil.rmtree(go, ignore_errors=True)
    generate(go / "src")
    (go / "src" / "gateway").mkdir()
    shutil.copy(HERE / "main.go", go / "src" / "gateway")
    program = BUILT / "gateway"
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": f"{go}:{UNPACKED / 'usr/share/gocode'}",
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
    }
    subprocess.run(["go", "build", "-o", program, "gateway"], check=True, env=environment)
    return program


def unpack() -> None:
    """Downloads and unpacks Debian's packages, once."""
    if (UNPACKED / "unpacked").exists():
        return
    if shutil.which("apt-get") is None:
        raise Missing("no apt-get, for Debian's packages of grpc-gateway")
    UNPACKED.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", "-qq", *PACKAGES]
    if subprocess.run(command, cwd=UNPACKED, capture_output=True).returncode:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(command, cwd=UNPACKED, check=True)
    for package in UNPACKED.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, UNPACKED], check=True)
        package.unlink()
    (UNPACKED / "unpacked").touch()


def generate(out: Path) -> None:
    """Generates the stubs and the gateway into `out`, the folder of Go's sources."""
    out.mkdir(parents=True)
    copy = BUILT / "proto" / PROTO
    copy.parent.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "proto" / PROTO).read_text("utf-8")
    copy.write_text(text.replace("  optional ", "  "), "utf-8")
    binaries = UNPACKED / "usr" / "bin"
    command = [sys.executable, str(ROOT / "scripts" / "protoc.py"), f"-I{BUILT / 'proto'}"]
    command += [f"--plugin={binaries / name}" for name in ("protoc-gen-go", "protoc-gen-grpc-gateway")]
    command += [f"--go_out=plugins=grpc,{IMPORTS}:{out}"]
    command += [f"--grpc-gateway_out=grpc_api_configuration={RULES},logtostderr=true,{IMPORTS}:{out}", PROTO]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    print(build())
