"""Builds environments with the base install alone, of the oldest or the newest versions that are allowed.

    python -m clients.conformance.contract.small oldest     builds one and prints its interpreter

An environment is built anew when pyproject.toml changes. The package itself is installed from the tree, as a
wheel, so that only what an install brings is there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Callable, Iterable
from pathlib import Path

from clients.conformance.run import BUILT, ROOT

BASE = ("grpcio", "protobuf", "googleapis-common-protos")
VERSIONS = ("oldest", "newest")
# Isolated, so that the installed package is imported; the list and its client come from the tree, after it.
RUN = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module("clients.conformance.contract.python_sync", run_name="__main__")
"""


def client(versions: str) -> Callable[[], list[str]]:
    """Makes the command of the blocking client in such an environment."""

    def command() -> list[str]:
        return [str(build(versions)), "-I", "-W", "error", "-c", RUN, str(ROOT)]

    return command


def build(versions: str) -> Path:
    """Builds an environment unless it is there; returns its interpreter.

    The package is always installed anew: it is what is tested. Raises CalledProcessError if pip fails.
    """
    folder = BUILT / f"base-{versions}"
    python, stamp, wanted = folder / "bin" / "python", folder / "built", "\n".join(requirements(versions))
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing the {versions} base install ...", file=sys.stderr, flush=True)
        venv.create(folder, clear=True, with_pip=False)
        _pip(python, "install", *wanted.split("\n"))
        stamp.write_text(wanted)
    with tempfile.TemporaryDirectory() as made:
        _pip(python, "install", "--no-deps", "--force-reinstall", wheel(Path(made)))
    _pip(python, "check")
    return python


def requirements(versions: str) -> list[str]:
    """Lists what to install: each floor of the base install as an exact version, or all as asked for."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        asked = tomllib.load(file)["project"]["dependencies"]
    assert {re.split(r"[<>=]", each)[0] for each in asked} == {*BASE}
    return asked if versions == "newest" else list(floors(asked))


def floors(asked: Iterable[str]) -> Iterable[str]:
    """Makes "grpcio==1.84" of "grpcio>=1.84", and so on."""
    for each in asked:
        name, floor = re.split(r">=", each.partition(",")[0])
        yield f"{name}=={floor}"


def wheel(folder: Path) -> str:
    """Builds the package's wheel from a copy: setuptools leaves its build folder beside the source."""
    source = folder / "source"
    names = subprocess.check_output(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, text=True
    ).split("\0")
    for name in filter(None, names):
        if (name.startswith("rerank_grpc/") or "/" not in name) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    _pip(None, "wheel", "--no-deps", "-w", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return str(built)


def _pip(python: Path | None, *words: str) -> None:
    where = ["--python", str(python)] if python else []
    command = [sys.executable, "-m", "pip", *where, "-qq", "--disable-pip-version-check", *words]
    subprocess.run(command, check=True, timeout=300, stdout=sys.stderr)


if __name__ == "__main__":
    print(build(sys.argv[1]))
