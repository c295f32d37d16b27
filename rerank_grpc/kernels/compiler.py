"""Compiles the C sources for a level of processors into one library, whose last line says what it is."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rerank_grpc.kernels.levels import Level

# Nothing but the standard library is imported here: scripts/build_kernels.py runs where torch is not.

FOLDER = Path(__file__).parent
COMPILE = ("-O3", "-fopenmp", "-fPIC", "-fvisibility=hidden", "-c")
# Without -fopenmp: the library names no OpenMP of its own, and takes the one that torch has loaded. Neither
# symbols nor an id: the same sources give the same bytes.
LINK = ("-shared", "-s", "-Wl,--build-id=none")
COMPILE_SECONDS = 120
ELF_MACHINES = {"x86_64": 62}
STAMP = "rerank-grpc kernels"


def sources() -> list[Path]:
    """Lists the C files and their headers."""
    return sorted(path for path in FOLDER.iterdir() if path.suffix in (".c", ".h"))


def file_name(level: Level) -> str:
    """Names the library of a level, in the folder where those of all levels are."""
    return f"kernels-{level.name}.so"


def digest_of(level: Level) -> str:
    """Names what a library is made of: the sources and the flags."""
    parts = [flag.encode() for flag in (*COMPILE, *LINK, *level.flags)]
    parts += [part for path in sources() for part in (path.name.encode(), path.read_bytes())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def version_of(compiler: str) -> bytes:
    """Asks a compiler for its version; raises OSError and SubprocessError."""
    return _run(compiler, "--version")


def compile_library(compiler: str, level: Level, path: Path) -> None:
    """Writes the library of a level, whole or not at all; raises OSError and SubprocessError."""
    with tempfile.TemporaryDirectory(dir=path.parent) as unfinished:
        folder = Path(unfinished)
        files = [str(each) for each in sources() if each.suffix == ".c"]
        _run(compiler, *COMPILE, *level.flags, *files, folder=folder)
        objects = sorted(each.name for each in folder.glob("*.o"))
        made = folder / path.name
        _run(compiler, *LINK, *objects, "-lm", "-o", made.name, folder=folder)
        made.write_bytes(_stamped(made.read_bytes(), level))
        made.replace(path)


def objection(library: bytes, level: Level) -> str:
    """Says why a library is not the one of a level and of these sources; "" if it is."""
    whole, _, line = library.removesuffix(b"\n").rpartition(b"\n")
    words = line.decode("ascii", "replace").split(" ")
    if " ".join(words[:2]) != STAMP or len(words) != 6:
        return "has no stamp"
    digest, machine, name, contents = words[2:]
    if (machine, name) != (level.machine, level.name):
        return f"is for {name} on {machine}"
    if digest != digest_of(level):
        return "is of another version"
    if contents != hashlib.sha256(whole).hexdigest() or whole[:5] != b"\x7fELF\x02":
        return "is damaged"
    if int.from_bytes(whole[18:20], "little") != ELF_MACHINES[level.machine]:
        return f"is no library for {level.machine}"
    return ""


def _stamped(library: bytes, level: Level) -> bytes:
    """Appends the stamp, behind what a loader reads."""
    words = (STAMP, digest_of(level), level.machine, level.name, hashlib.sha256(library).hexdigest())
    return library + f"\n{' '.join(words)}\n".encode()


def _run(*command: str, folder: Path | None = None) -> bytes:
    done = subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS, cwd=folder)
    return done.stdout
