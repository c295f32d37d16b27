"""The two templates of buf generate agree, and the local one writes stubs under the documented names."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.conformance.run import BUILT, ROOT
from rerank_grpc.v1 import rerank_pb2

BUF = ROOT / "tools" / "buf" / "node_modules" / ".bin" / "buf"
PLUGINS = ("protoc", "protoc-gen-go", "protoc-gen-go-grpc", "grpc_java_plugin", "npm")
GEN_ES = "@bufbuild/protoc-gen-es@2.17.0"
# By file: what it declares, in the words of its language.
DECLARED = {
    "go/rerank/v1/rerank.pb.go": ("package rerankv1", "type RerankRequest struct"),
    "go/rerank/v1/rerank_grpc.pb.go": ("package rerankv1", "func NewRerankServiceClient("),
    "java/io/github/rerankgrpc/v1/RerankRequest.java": ("package io.github.rerankgrpc.v1;",),
    "java/io/github/rerankgrpc/v1/RerankServiceGrpc.java": (
        "package io.github.rerankgrpc.v1;",
        "newBlockingStub(",
    ),
    "typescript/rerank/v1/rerank_pb.ts": ("export const RerankService:", "export type RerankRequest ="),
    "csharp/V1/Rerank.cs": ("namespace RerankGrpc.V1 {", "class RerankRequest "),
}
# What no plugin from Debian or npm writes; it has never been generated here.
REMOTE_ALONE = {
    "buf.build/grpc/csharp",
    "buf.build/community/neoeinstein-prost",
    "buf.build/community/neoeinstein-tonic",
}
TWINS = {
    "buf.build/protocolbuffers/go": "protoc-gen-go",
    "buf.build/grpc/go": "protoc-gen-go-grpc",
    "buf.build/protocolbuffers/java": "java",
    "buf.build/grpc/java": "grpc_java_plugin",
    "buf.build/bufbuild/es": "protoc-gen-es",
    "buf.build/protocolbuffers/csharp": "csharp",
}


def template(name: str) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((ROOT / name).read_text("utf-8"))
    return value


def test_what_runs_here_is_what_users_run_but_for_where():
    remote, local = template("buf.gen.yaml"), template("buf.gen.local.yaml")
    assert remote["inputs"] == local["inputs"]
    users = {plugin.pop("remote"): plugin for plugin in remote["plugins"]}
    ours = {plugin.pop("local", None) or plugin.pop("protoc_builtin"): plugin for plugin in local["plugins"]}
    assert users.keys() == TWINS.keys() | REMOTE_ALONE
    assert {TWINS[name]: users[name] for name in TWINS} == ours


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what buf generates by the plugins of this machine."""
    missing = [name for name in PLUGINS if shutil.which(name) is None]
    missing += [] if BUF.exists() else ["buf"]
    if missing:
        if os.environ.get("CI"):
            pytest.fail(f"missing: {', '.join(missing)}; buf.gen.local.yaml names their packages")
        pytest.skip(f"missing: {', '.join(missing)}")
    plugins = BUILT / "protoc-gen-es"
    if not (plugins / "node_modules" / ".bin" / "protoc-gen-es").exists():
        plugins.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"]
        subprocess.run([*install, str(plugins), GEN_ES], check=True)
    out: Path = tmp_path_factory.mktemp("generated")
    path = f"{os.environ['PATH']}:{plugins / 'node_modules' / '.bin'}"
    command = [str(BUF), "generate", "--template", "buf.gen.local.yaml", "-o", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, done.stderr
    return out / "gen"


@pytest.mark.parametrize("file", DECLARED)
def test_a_language_gets_its_stubs(generated: Path, file: str):
    text = (generated / file).read_text("utf-8")
    for declared in DECLARED[file]:
        assert declared in text


def test_nothing_of_other_servers_protocols_is_generated(generated: Path):
    names = {path.relative_to(generated).as_posix() for path in generated.rglob("*") if path.is_file()}
    assert names
    assert not [name for name in names if "tei" in name.lower() or "inference" in name.lower()]
    assert {name.partition("/")[0] for name in names} == {"go", "java", "typescript", "csharp"}


def test_the_page_names_the_packages_that_the_contract_declares():
    page = (ROOT / "docs" / "contract.md").read_text("utf-8")
    options = rerank_pb2.DESCRIPTOR.GetOptions()
    go, _, package = options.go_package.partition(";")
    for name in (go, package, options.java_package, options.csharp_namespace, options.ruby_package):
        assert f"`{name}`" in page
    for command in ("buf generate --template buf.gen.local.yaml", "npx @bufbuild/buf generate"):
        assert f"\n{command}\n" in page
