"""Compiles the kernels ahead of time: a library for each level of the compiler's machine.

    python3 scripts/build_kernels.py OUT [--level NAME ...] [--compiler CC]

It needs Python and gcc, and nothing that is installed by pip. The same compiler writes the same bytes.
A compiler for another machine, such as aarch64-linux-gnu-gcc, gives the levels of that one. It exits with
status 3 where no kernels are written for the machine, and 1 where compiling fails.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NO_LEVEL = 3  # the exit status for a machine that the kernels are not written for
KERNELS = Path(__file__).resolve().parent.parent / "rerank_grpc" / "kernels"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles what the command line asks for; returns the exit status."""
    # By their files: the package that holds them imports torch.
    sys.path.insert(0, str(KERNELS))
    levels: Any = importlib.import_module("levels")
    compiler: Any = importlib.import_module("compiler")
    parser = argparse.ArgumentParser(description="Compiles the kernels, a library for each level.")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder for the libraries")
    names = [level.name for level in levels.LEVELS]
    parser.add_argument(
        "--level", metavar="NAME", action="append", choices=names, help=f"of {', '.join(names)}; repeatable"
    )
    parser.add_argument("--compiler", metavar="CC", default="gcc", help="the C compiler (default: gcc)")
    asked = parser.parse_args(arguments)
    try:
        machine = machine_of(asked.compiler)
        chosen = [level for level in levels.LEVELS if level.machine == machine]
        if asked.level:
            chosen = [level for level in chosen if level.name in asked.level]
        if not chosen:
            print(f"build_kernels: {asked.compiler} is for {machine}: no such level", file=sys.stderr)
            return NO_LEVEL
        asked.out.mkdir(parents=True, exist_ok=True)
        for level in chosen:
            path = asked.out / compiler.file_name(level)
            compiler.compile_library(asked.compiler, level, path)
            print(f"{path}: {path.stat().st_size:,} bytes")
    except subprocess.CalledProcessError as error:
        print(
            error.stderr if isinstance(error.stderr, str) else error.stderr.decode(errors="replace"),
            file=sys.stderr,
        )
        print(f"build_kernels: {asked.compiler} failed with status {error.returncode}", file=sys.stderr)
        return 1
    except (OSError, subprocess.SubprocessError) as error:
        print(f"build_kernels: {error}", file=sys.stderr)
        return 1
    return 0


def machine_of(compiler: str) -> str:
    """Asks a compiler for the machine that it compiles for, as `uname -m` says it there."""
    done = subprocess.run([compiler, "-dumpmachine"], check=True, capture_output=True, text=True)
    return done.stdout.partition("-")[0]


if __name__ == "__main__":
    sys.exit(main())
