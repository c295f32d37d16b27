"""Builds and tests the Go client with Debian's Go and its packaged gRPC, which need no network.

    python -m clients.go.tasks test      formats, vets, compares the stubs, tests, installs; a minute
    python -m clients.go.tasks stubs     generates the stubs anew

Debian's packages are sources below /usr/share/gocode, so modules are off and GOPATH has two folders: ours,
where the client lies under its import path, and Debian's. GO_PACKAGES names another in the place of that one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from clients.conformance.contract.tools import Missing
from clients.go import install

HERE, ROOT, MODULE = install.HERE, install.ROOT, install.MODULE
BUILT = ROOT / ".tools" / "go"
STUBS = ("rerank/v1/rerank.pb.go", "rerank/v1/rerank_grpc.pb.go")

INSTALL = (
    "apt-get install --no-install-recommends golang-go golang-google-grpc-dev golang-google-protobuf-dev "
    "golang-google-genproto-dev golang-github-golang-protobuf-1-5-dev protobuf-compiler protoc-gen-go "
    "protoc-gen-go-grpc"
)
COMPILER = ("go", "gofmt")
GENERATORS = ("protoc", "protoc-gen-go", "protoc-gen-go-grpc")
PACKAGES = "/usr/share/gocode"
NEEDED = ("grpc", "protobuf/proto", "genproto/googleapis/rpc/errdetails")


def main() -> int:
    """Does what the command line says; 1 if it fails."""
    tasks: dict[str, Callable[[], None]] = {"test": test, "stubs": lambda: generate(HERE)}
    if len(sys.argv) != 2 or sys.argv[1] not in tasks:
        print(f"usage: python -m clients.go.tasks {'|'.join(tasks)}", file=sys.stderr)
        return 2
    try:
        tasks[sys.argv[1]]()
    except (Missing, Stale, install.Uninstallable) as problem:
        print(problem, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failed:
        return failed.returncode or 1
    return 0


class Stale(Exception):
    """Files that a command would write differently; the text says which, and the command."""


def test() -> None:
    """Checks form, sense, stubs and installation, and runs the tests against the real server."""
    need(*COMPILER, *GENERATORS)
    formatted()
    fresh()
    go("vet", "./...")
    go("test", "-count=1", "./...")
    install.check(os.environ.get("GO_PACKAGES", PACKAGES))


def build(package: str) -> Path:
    """Builds a program of the module; returns its path."""
    need(*COMPILER)
    program = BUILT / "bin" / Path(package).name
    go("build", "-o", str(program), f"{MODULE}/{package}")
    return program


def need(*commands: str) -> None:
    """Raises Missing unless the commands and the packages are here."""
    absent = [command for command in commands if shutil.which(command) is None]
    folder = Path(os.environ.get("GO_PACKAGES", PACKAGES)) / "src" / "google.golang.org"
    absent += [f"google.golang.org/{name}" for name in NEEDED if not (folder / name).is_dir()]
    if absent:
        raise Missing(f"no {', '.join(absent)}: {INSTALL}")


def go(*arguments: str) -> None:
    """Runs Go in the module's folder, where its import path says it is."""
    place = BUILT / "src" / MODULE
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.resolve() != HERE:
        place.unlink(missing_ok=True)  # of a checkout that has moved
        place.symlink_to(HERE, target_is_directory=True)
    # Go takes PWD for the folder's name, where it is one of this folder.
    variables = {**os.environ, **environment(), "PWD": str(place)}
    subprocess.run(["go", *arguments], cwd=place, env=variables, check=True)


def environment() -> dict[str, str]:
    """Returns what Go is to see besides what it has."""
    return {
        "GO111MODULE": "off",
        "GOPATH": f"{BUILT}{os.pathsep}{os.environ.get('GO_PACKAGES', PACKAGES)}",
        "CGO_ENABLED": "0",
        # gRPC before 1.40 retries only if it is told so.
        "GRPC_GO_RETRY": "on",
        # The tests run a server by it.
        "RERANK_TEST_PYTHON": sys.executable,
    }


def formatted() -> None:
    """Raises Stale if gofmt would write a file differently."""
    done = subprocess.run(["gofmt", "-l", str(HERE)], check=True, capture_output=True, text=True)
    if done.stdout:
        raise Stale(f"gofmt -w {' '.join(done.stdout.split())}")


def fresh() -> None:
    """Raises Stale if the stubs are not those of the contract."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = [name for name in STUBS if (Path(folder) / name).read_text() != (HERE / name).read_text()]
    if stale:
        raise Stale(f"{', '.join(stale)} differ from the contract's: python -m clients.go.tasks stubs")


def generate(folder: Path) -> None:
    """Writes the stubs into a folder."""
    need(*GENERATORS)
    options = [f"--{plugin}_{option}" for plugin in ("go", "go-grpc") for option in outputs(plugin, folder)]
    subprocess.run(["protoc", "-Iproto", *options, "rerank/v1/rerank.proto"], cwd=ROOT, check=True)


def outputs(plugin: str, folder: Path) -> Sequence[str]:
    """Returns the options of a plugin of protoc, without its name."""
    more = ("opt=require_unimplemented_servers=true",) if plugin == "go-grpc" else ()
    return f"out={folder}", f"opt=module={MODULE}", *more


if __name__ == "__main__":
    sys.exit(main())
