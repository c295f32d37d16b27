"""The base install at its oldest and at its newest: it imports without a warning, helps, and stays small."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from clients.conformance.contract import small
from clients.conformance.run import BUILT, ROOT

MOST_BYTES = 25_000_000  # unpacked from the wheels, without what the interpreter compiles
MOST_SECONDS = 0.05  # of importing the client, beyond what any generated stub imports
ANY_STUB = "grpc, google.rpc.error_details_pb2"
TOOLS = ("pip", "setuptools", "wheel")


@pytest.fixture(scope="module", params=small.VERSIONS)
def interpreter(request) -> Path:
    return small.build(request.param)


def output(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def versions(interpreter: Path) -> dict[str, str]:
    code = "import importlib.metadata as m; print(*{f'{d.name}=={d.version}' for d in m.distributions()})"
    pairs = (each.split("==") for each in output(interpreter, "-I", "-c", code).split())
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_the_oldest_environment_has_every_floor_of_pyproject():
    installed = versions(small.build("oldest"))
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    for requirement in asked:
        name, floor = re.split(">=", requirement.partition(",")[0])
        assert f"{installed[name]}.0.0".startswith(f"{floor}."), (name, floor)


@pytest.mark.timeout(300)
def test_the_client_imports_without_a_warning(interpreter):
    code = "import rerank_grpc.client; print(rerank_grpc.__file__)"
    assert str(BUILT) in output(interpreter, "-I", "-W", "error", "-c", code)


def test_the_command_line_helps(interpreter):
    assert "rerank" in output(interpreter.parent / "rerank-grpc", "--help")


def test_a_reply_that_an_error_explains_is_read(interpreter):
    code = (
        "from google.rpc import error_details_pb2, status_pb2; from google.protobuf import any_pb2; "
        "packed = any_pb2.Any(); packed.Pack(error_details_pb2.ErrorInfo(reason='R', domain='rerank.v1')); "
        "sent = status_pb2.Status(code=3, details=[packed]).SerializeToString(); "
        "read = status_pb2.Status.FromString(sent); "
        "info = error_details_pb2.ErrorInfo(); assert read.details[0].Unpack(info); print(info.reason)"
    )
    assert output(interpreter, "-I", "-W", "error", "-c", code) == "R\n"


def sizes(interpreter: Path) -> dict[str, int]:
    """Adds up each package's files by its name in site-packages, without those that Python compiles."""
    (site,) = interpreter.parents[1].glob("lib/python*/site-packages")
    found: dict[str, int] = {}
    for file in site.rglob("*"):
        name = file.relative_to(site).parts[0]
        if file.is_file() and file.suffix != ".pyc" and not name.startswith(TOOLS):
            found[name] = found.get(name, 0) + file.stat().st_size
    return found


def test_the_base_install_stays_small(interpreter):
    found = sizes(interpreter)
    assert {"grpc", "google", "rerank_grpc"} <= found.keys()
    assert sum(found.values()) <= MOST_BYTES, sorted(found.items(), key=lambda pair: -pair[1])[:5]


@pytest.mark.clock
def test_the_client_imports_nearly_as_fast_as_any_stub(interpreter):
    def seconds(module):
        code = (
            f"import time; began = time.process_time(); import {module}; print(time.process_time() - began)"
        )
        return float(output(interpreter, "-I", "-c", code))

    output(interpreter, "-I", "-c", "import rerank_grpc.client")  # which compiles what pip has not
    pairs = [(seconds(ANY_STUB), seconds("rerank_grpc.client")) for _ in range(9)]
    stub, client = (min(times) for times in zip(*pairs, strict=True))
    assert client - stub <= MOST_SECONDS, (stub, client)
