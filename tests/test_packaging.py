"""The base install is light: the contract, the Python client and the command line."""

import ast
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rerank_grpc.kernels.levels import LEVELS, levels_of, processor_features

ROOT = Path(__file__).resolve().parent.parent
LIGHT = {"rerank-grpc", "grpcio", "protobuf", "googleapis-common-protos", "typing-extensions"}


# What `serve` and `rest` import for the port of the metrics, which is on unless they are told otherwise.
METRICS = ["http", "telemetry", "server/rpc_metrics.py", "cli/watching.py"]
DISTRIBUTIONS = {"prometheus_client": "prometheus-client", "opentelemetry": "opentelemetry-sdk"}
OF_TRACES = {"opentelemetry-sdk"}


def extras():
    """Reads the distributions that each extra names."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        lists = tomllib.load(file)["project"]["optional-dependencies"]
    return {
        name: {re.split(r"[^\w-]", each)[0] for each in requirements} for name, requirements in lists.items()
    }


def imported(place):
    """Finds the distributions beyond the base install that a module or a folder of them imports."""
    path = ROOT / "rerank_grpc" / place
    names = set()
    for file in [path] if path.is_file() else path.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
    base = {"rerank_grpc", "google", "grpc", *sys.stdlib_module_names}
    return {DISTRIBUTIONS.get(name, name) for name in names - base}


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


@pytest.mark.parametrize("extra", ["server", "rest"])
def test_what_serves_brings_what_its_metrics_take(extra):
    taken = set().union(*map(imported, METRICS)) - OF_TRACES
    assert {"prometheus-client", "starlette", "uvicorn", "h11"} <= taken
    assert taken - extras()[extra] == set()


def test_every_extra_that_a_file_names_exists():
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    known = extras()
    named: dict[str, str] = {}
    for name in filter(None, tracked):
        if (ROOT / name).is_file() and not name.startswith("benchmarks/results/"):
            text = (ROOT / name).read_text("utf-8", "replace")
            for group in re.findall(r"(?:rerank-grpc|['\"]\.)\[([a-z,]+)\]", text):
                named |= dict.fromkeys(group.split(","), name)
    assert {"server", "rest", "otel", "top"} <= named.keys()
    assert {extra: name for extra, name in named.items() if extra not in known} == {}


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


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Returns a folder of the pure wheel and of the one with kernels."""
    lacking = [name for name in ("wheel", "setuptools", "auditwheel") if not importlib.util.find_spec(name)]
    if lacking or shutil.which("gcc") is None:
        if os.environ.get("CI"):
            pytest.fail("needs gcc, wheel, setuptools and auditwheel")
        pytest.skip("needs gcc, wheel, setuptools and auditwheel")
    if not any(level.machine == platform.machine() for level in LEVELS):
        pytest.skip("no kernels are written for this machine")
    return built_wheels(tmp_path_factory.mktemp("wheels"))


def built_wheels(folder):
    # One level takes a fifth of the time of all.
    levels = [f"--level={level.name}" for level in levels_of(platform.machine(), processor_features())[:1]]
    command = [sys.executable, ROOT / "scripts" / "build_wheels.py", folder, *levels]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return folder


def chosen_by_pip(wheels, folder, *system):
    """Returns the name of the wheel that pip takes, on this or on another system."""
    options = ["--no-index", "--no-deps", "--only-binary=:all:", "--find-links", wheels, "-d", folder]
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "download"]
    subprocess.run([*pip, *options, *system, "rerank-grpc"], check=True, timeout=60)
    (wheel,) = folder.iterdir()
    return wheel.name.partition("-py3-")[2]


on_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs Linux with glibc"
)


@on_linux
def test_pip_takes_the_wheel_with_kernels_where_they_run(wheels, tmp_path):
    own = f"none-manylinux_2_28_{platform.machine()}.whl"
    assert len(list(wheels.iterdir())) == 2
    assert chosen_by_pip(wheels, tmp_path / "here") == own
    for system in ("win_amd64", "macosx_14_0_arm64", "musllinux_1_2_x86_64", "manylinux2014_s390x"):
        assert chosen_by_pip(wheels, tmp_path / system, "--platform", system) == "none-any.whl"


@on_linux
def test_the_wheel_with_kernels_runs_on_what_its_name_says(wheels):
    (wheel,) = wheels.glob("*manylinux*.whl")
    shown = output(sys.executable, "-m", "auditwheel", "show", wheel)
    needed = re.search(r'platform tag: "manylinux_2_(\d+)_', " ".join(shown.split()))
    assert needed is not None, shown
    assert int(needed[1]) <= 28


def test_two_builds_of_the_wheels_are_equal(wheels, tmp_path):
    again = built_wheels(tmp_path)
    assert {path.name: path.read_bytes() for path in wheels.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }


LOADED = """
import pathlib, torch
from rerank_grpc.kernels.native import kernels
level = kernels().level
lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
print(level, *{line.split()[-1] for line in lines if "kernels-" in line})
"""


@on_linux
def test_an_installed_wheel_has_its_kernels_without_a_compiler_or_a_home(wheels, tmp_path):
    levels = levels_of(platform.machine(), processor_features())
    if not levels:
        pytest.skip("the processor has no level")
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = wheels.glob("*manylinux*.whl")
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "--python", python]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", wheel], check=True, timeout=60)
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    # The other packages of this environment: a path finds none that is installed in place.
    nowhere = dict.fromkeys(("PATH", "HOME", "TMPDIR"), str(tmp_path / "nowhere"))
    environment = {
        **nowhere,
        "PYTHONPATH": str(Path(torch.origin).parents[1]),
        "RERANK_KERNELS": levels[0].name,
        "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", ""),
    }
    done = subprocess.run(
        [python, "-c", LOADED], capture_output=True, text=True, timeout=100, env=environment, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    level, library = done.stdout.split()
    assert level == levels[0].name
    assert Path(library).is_relative_to((tmp_path / "venv").resolve())
