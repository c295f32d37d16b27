"""The library of the best level that the processor has: the one that ships with the package, or compiled."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from rerank_grpc.config.reading import read_kernels
from rerank_grpc.kept import cache_folder
from rerank_grpc.kernels.compiler import compile_library, digest_of, file_name, objection, version_of
from rerank_grpc.kernels.levels import LEVELS, Level, levels_of, processor_features

log = logging.getLogger(__name__)

BUILT = Path(__file__).with_name("built")
AUTO, NONE = "auto", "none"


class Library(NamedTuple):
    """A loaded library, and the level that it was compiled for."""

    functions: ctypes.CDLL
    level: str


def library() -> Library | None:
    """Finds the library that RERANK_KERNELS allows; None where torch's operations compute.

    The first call loads it, and logs which it is. Raises OptionError for a level that no kernels have.
    """
    return _library(read_kernels())


@functools.cache
def _library(allowed: str) -> Library | None:
    levels = _levels(allowed)
    why, compiles = "", True  # the best level is not used; the compiler may do
    for level in levels:
        functions, origin = _built(level), "built in"
        if functions is None and compiles:
            try:
                functions, origin = _compiled(level), "compiled"
            except (OSError, subprocess.SubprocessError) as error:
                # An older compiler may know a lower level, though not the newest instructions.
                compiles = isinstance(error, subprocess.CalledProcessError)
                unused = f"{level.name}, which the processor has, is not used"
                why = why or f"{unused} ({_reason(error)})"
        if functions is not None:
            told = f": {why}: {consequence(has_kernels=True)}" if why else ""
            log.info("kernels %s (%s)%s", level.name, origin, told)
            return Library(functions, level.name)
    if why:
        log.warning("no kernels: %s: %s", why, consequence())
    return None


def consequence(*, has_kernels: bool = False) -> str:
    """Says what the precisions below fp32 come to on this processor without its best kernels."""
    from rerank_grpc.kernels import device  # which imports this module

    runs = {"bf16": device.runs_bf16(), "int8": has_kernels or device.onednn_int8()}
    slower = [name for name, can in runs.items() if can]
    refused = [name for name, can in runs.items() if not can]
    parts = [f"{' and '.join(slower)} {'runs' if len(slower) == 1 else 'run'} slower"] if slower else []
    if refused:
        parts.append(f"{' and '.join(refused)} {'is' if len(refused) == 1 else 'are'} refused")
    return ", and ".join(parts)


def allowed_levels(allowed: str) -> tuple[Level, ...]:
    """Lists the levels that the processor has and a setting allows, the best first; loads nothing."""
    if allowed == NONE:
        return ()
    names = [level.name for level in LEVELS]
    below = names if allowed == AUTO else names[names.index(allowed) :]
    found = levels_of(platform.machine(), processor_features())
    return tuple(level for level in found if level.name in below)


def _levels(allowed: str) -> tuple[Level, ...]:
    """Lists the levels likewise, and logs why there are none, or not the one that was asked for."""
    found = allowed_levels(allowed)
    if allowed == NONE:
        log.info("no kernels, as RERANK_KERNELS says: %s", consequence())
    elif allowed == AUTO:
        if not found:
            log.info("no kernels: there are none for this processor: %s", consequence())
    elif allowed not in [level.name for level in found]:
        instead = f"takes {found[0].name}" if found else f"runs without kernels: {consequence()}"
        log.warning("kernels %s are not for this processor, which %s", allowed, instead)
    return found


def _built(level: Level) -> ctypes.CDLL | None:
    """Loads the library that ships with the package; None, with a line in the log, if it is not right."""
    path = BUILT / file_name(level)
    try:
        wrong = objection(path.read_bytes(), level)
        if not wrong:
            return _loaded(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        wrong = f"cannot be loaded ({_reason(error)})"
    log.warning("%s %s, and is ignored", path, wrong)
    return None


def _compiled(level: Level) -> ctypes.CDLL:
    """Loads the library that this or an earlier start has compiled; raises OSError and SubprocessError."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise OSError("no library of it is built in, and there is no C compiler")
    # A version of the compiler names the file as well: another one may correct what it makes.
    key = hashlib.sha256(version_of(compiler) + digest_of(level).encode()).hexdigest()
    path = cache_folder() / f"{key[:16]}-{file_name(level)}"
    if not _is_own(path) or objection(path.read_bytes(), level):
        compile_library(compiler, level, path)
    return _loaded(path)


def _is_own(path: Path) -> bool:
    return path.is_file() and path.stat().st_uid == os.geteuid()


def _loaded(path: Path) -> ctypes.CDLL:
    """Loads a library of the right level; raises OSError where the system does not map it."""
    try:
        ctypes.CDLL(None)["GOMP_parallel"]
    except AttributeError:  # not among what all libraries see: torch's own by this name, else the system's
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(path))


def _reason(error: OSError | subprocess.SubprocessError) -> str:
    """Says in a line why a library was not loaded."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.decode(errors="replace").splitlines()
        return next((line for line in lines if "error" in line), f"{error.cmd[0]} failed")
    text = " ".join(str(error).split())
    hint = ": its folder may be mounted noexec" if "failed to map segment" in text else ""
    return text + hint
