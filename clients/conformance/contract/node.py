"""Builds the client of Node, and names the program that sends the list through it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from clients.conformance.contract.tools import Missing

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "clients" / "node"
OLDEST = 20


def command() -> list[str]:
    """Installs and builds the package unless these very files were built; raises Missing without Node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None or version_of(node) < OLDEST:
        raise Missing(f"install Node {OLDEST} or later, with npm")
    make("node_modules", locks(), [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"])
    make("dist", sources(), [npm, "run", "--silent", "build"])
    return [node, str(PACKAGE / "conformance" / "main.mjs")]


def version_of(node: str) -> int:
    """Asks Node for its major version."""
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return int(said.removeprefix("v").partition(".")[0])


def make(folder: str, files: Iterator[Path], command: list[str]) -> None:
    """Makes a folder of the package by a command unless it was made of these very files."""
    digest = digest_of(files)
    stamp = PACKAGE / "node_modules" / f".{folder}-made-of"
    if (PACKAGE / folder).exists() and stamp.exists() and stamp.read_text() == digest:
        return
    print(f"clients/node: {' '.join(['npm', *command[1:]])} ...", flush=True)
    subprocess.run(command, cwd=PACKAGE, check=True)
    stamp.write_text(digest)


def locks() -> Iterator[Path]:
    """Yields what decides about the packages that are installed."""
    yield from (PACKAGE / "package.json", PACKAGE / "package-lock.json")


def sources() -> Iterator[Path]:
    """Yields what decides about the build."""
    yield from locks()
    yield from (
        PACKAGE / "tsconfig.json",
        PACKAGE / "buf.gen.yaml",
        ROOT / "proto" / "rerank" / "v1" / "rerank.proto",
    )
    yield from sorted((PACKAGE / "proto").rglob("*.proto"))
    generated = PACKAGE / "src" / "gen"
    yield from sorted(path for path in (PACKAGE / "src").rglob("*.*ts") if generated not in path.parents)


def digest_of(files: Iterator[Path]) -> str:
    """Sums up the names and contents of files."""
    sums = [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


if __name__ == "__main__":
    command()
