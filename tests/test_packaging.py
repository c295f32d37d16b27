"""The base install is light: the contract, the Python client and the command line."""

import os
import socket
import subprocess
import sys
import venv
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIGHT = {"rerank-grpc", "grpcio", "protobuf", "googleapis-common-protos", "typing-extensions"}


def environment_of_pip():
    """Makes an environment without a proxy at which nothing listens: packages may be found without it."""
    kept = dict(os.environ)
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        proxy = urlsplit(kept.get(name, ""))
        if proxy.hostname and proxy.port:
            with socket.socket() as probe:
                probe.settimeout(5)
                if probe.connect_ex((proxy.hostname, proxy.port)):
                    del kept[name]
    return kept


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Returns the folder of executables of an environment with the base install alone."""
    folder = tmp_path_factory.mktemp("bare")
    source = folder / "source"
    source.mkdir()
    # Built from a copy: setuptools leaves its build folder where the source is.
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, tracked):
        if name.startswith("rerank_grpc/") or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check"]
    environment = environment_of_pip()
    command = [*pip, "wheel", "--no-deps", "-w", wheels, source]
    subprocess.run(command, check=True, timeout=100, env=environment)
    venv.create(folder / "venv", with_pip=False)
    (wheel,) = wheels.glob("*.whl")
    python = folder / "venv" / "bin" / "python"
    constraints: list[str | Path] = ["-c", ROOT / "constraints.txt"]
    command = [*pip, "--python", python, "install", *constraints, wheel]
    subprocess.run(command, check=True, timeout=100, env=environment)
    return python.parent


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd="/").stdout


def test_the_base_install_brings_nothing_heavy(bare):
    code = "import importlib.metadata as m; print(*sorted({d.name for d in m.distributions()}))"
    installed = {name.replace("_", "-") for name in output(bare / "python", "-c", code).split()}
    assert installed == LIGHT


def test_the_kernels_sources_are_installed(bare):
    code = (
        "import pathlib, rerank_grpc; folder = pathlib.Path(rerank_grpc.__file__).parent / 'kernels'; "
        "print(*sorted(path.name for path in folder.iterdir() if path.suffix in ('.c', '.h')))"
    )
    installed = output(bare / "python", "-c", code).split()
    assert installed == sorted(path.name for path in (ROOT / "rerank_grpc" / "kernels").glob("*.[ch]"))
    assert {"kernels.h", "attention.c"} <= {*installed}


def test_the_client_imports_without_what_serves(bare):
    code = (
        "import sys; from rerank_grpc.client import AsyncClient, Client; "
        "from rerank_grpc.v1 import rerank_pb2_grpc; "
        "print({'torch', 'transformers', 'tokenizers', 'numpy', 'starlette'} & {*sys.modules})"
    )
    assert output(bare / "python", "-c", code) == "set()\n"


def test_the_command_line_helps_and_says_what_serving_needs(bare):
    assert "examples:" in output(bare / "rerank-grpc", "health", "--help")
    done = subprocess.run(
        [bare / "rerank-grpc", "serve"], capture_output=True, text=True, timeout=60, cwd="/"
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("rerank-grpc: error: serving needs ")
    assert "Traceback" not in done.stderr
