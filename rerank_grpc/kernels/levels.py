"""The levels of processors that the kernels are compiled for, and what this machine's processor has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# Nothing but the standard library is imported here: scripts/build_kernels.py runs where torch is not.

_CPUINFO = Path("/proc/cpuinfo")
_V3 = ("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "abm")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


class Level(NamedTuple):
    """The instructions that a library is compiled for; features are named as in /proc/cpuinfo."""

    name: str
    machine: str  # as `uname -m` says it
    flags: tuple[str, ...]  # of the compiler
    needs: frozenset[str]


# The best first: a processor gets the first that it has.
LEVELS = (
    Level(
        "amx",
        "x86_64",
        (
            *("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-int8"),
            "-mprefer-vector-width=512",
        ),
        frozenset((*_V4, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8")),
    ),
    Level(
        "avx512-bf16",
        "x86_64",
        ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512"),
        frozenset((*_V4, "avx512_vnni", "avx512_bf16")),
    ),
    Level(
        "avx512-vnni",
        "x86_64",
        ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512"),
        frozenset((*_V4, "avx512_vnni")),
    ),
    Level("avx2-vnni", "x86_64", ("-march=x86-64-v3", "-mavxvnni"), frozenset((*_V3, "avx_vnni"))),
    Level("avx2", "x86_64", ("-march=x86-64-v3",), frozenset(_V3)),
)


def levels_of(machine: str, features: Iterable[str]) -> tuple[Level, ...]:
    """Lists the levels that a processor has, the best first."""
    found = frozenset(features)
    return tuple(level for level in LEVELS if level.machine == machine and level.needs <= found)


def processor_features(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """The features that all processors of this machine have; none where Linux does not tell them.

    torch reads the same file for its own choice: where that cannot be read, it has no vectors either.
    """
    try:
        text = cpuinfo.read_text("ascii", "replace")
    except OSError:
        return frozenset()
    lines = set(re.findall(r"^(?:flags|Features)[ \t]*:(.*)$", text, re.MULTILINE))
    return frozenset.intersection(*(frozenset(line.split()) for line in lines)) if lines else frozenset()
