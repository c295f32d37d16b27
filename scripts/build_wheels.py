"""Builds the wheels: a pure one, and one with the kernels for each machine that a compiler is here for.

    python scripts/build_wheels.py OUT [--compiler CC ...] [--level NAME ...]

The pure wheel is what `pip wheel` makes of the files that git tracks. The others are the same files and the
libraries of scripts/build_kernels.py, under a name that pip prefers on their machine. SOURCE_DATE_EPOCH dates
all files, by default with the last commit's time, so that two builds of a commit are equal.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILT = Path("rerank_grpc", "kernels", "built")
# As of torch's own wheels, without which no kernels run.
PLATFORM = "manylinux_2_28"
NO_LEVEL = 3  # the exit status of build_kernels.py for a machine that the kernels are not written for


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Builds a pure wheel, and one with the kernels per compiler."
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder for the wheels")
    parser.add_argument(
        "--compiler", metavar="CC", action="append", help="a C compiler (default: gcc); repeatable"
    )
    parser.add_argument(
        "--level",
        metavar="NAME",
        action="append",
        default=[],
        help="of the kernels (default: all); repeatable",
    )
    asked = parser.parse_args(arguments)
    os.environ.setdefault("SOURCE_DATE_EPOCH", _output("git", "log", "-1", "--format=%ct"))
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            pure = _build_pure(Path(folder))
            for compiler in asked.compiler or ["gcc"]:
                wheel = _with_kernels(pure, compiler, asked.level, Path(folder))
                if wheel is not None:
                    shutil.copy(wheel, asked.out)
            shutil.copy(pure, asked.out)
        except subprocess.CalledProcessError as error:
            print(f"build_wheels: {error.cmd[0]} failed with status {error.returncode}", file=sys.stderr)
            return 1
    for wheel in sorted(asked.out.glob("*.whl")):
        print(f"{wheel}: {wheel.stat().st_size:,} bytes")
    return 0


def _build_pure(folder: Path) -> Path:
    """Builds a copy of the tracked files: setuptools leaves its folders where the source is."""
    source, wheels = folder / "source", folder / "pure"
    for name in filter(None, _output("git", "ls-files", "-z").split("\0")):
        path = source / name
        if name.startswith("rerank_grpc/") or "/" not in name:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / name).read_bytes())
            path.chmod(0o644)  # whatever the umask of the checkout
    # With the setuptools that is installed, and pinned, beside this Python.
    _run("pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source))
    (wheel,) = wheels.glob("*.whl")
    return wheel


def _with_kernels(pure: Path, compiler: str, levels: Sequence[str], folder: Path) -> Path | None:
    """Adds the libraries of a compiler's machine to the pure wheel; None where it has no level."""
    target = _output(compiler, "-dumpmachine").partition("-")[0]
    unpacked, packed = folder / target, folder / f"{target}-wheel"
    _run("wheel", "unpack", "-d", str(unpacked), str(pure))
    (tree,) = unpacked.iterdir()
    script = str(ROOT / "scripts" / "build_kernels.py")
    command = [sys.executable, script, str(tree / BUILT), "--compiler", compiler]
    done = subprocess.run([*command, *(f"--level={name}" for name in levels)], stdout=subprocess.DEVNULL)
    if done.returncode == NO_LEVEL:
        return None  # which has been said
    done.check_returncode()
    for library in (tree / BUILT).iterdir():
        library.chmod(0o755)
    (description,) = tree.glob("*.dist-info/WHEEL")
    text = description.read_text()
    text = re.sub("^Root-Is-Purelib: .*", "Root-Is-Purelib: false", text, flags=re.MULTILINE)
    text = re.sub("^Tag: .*", f"Tag: py3-none-{PLATFORM}_{target}", text, flags=re.MULTILINE)
    description.write_text(text)
    packed.mkdir()
    _run("wheel", "pack", "-d", str(packed), str(tree))
    (wheel,) = packed.iterdir()
    return wheel


def _run(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
