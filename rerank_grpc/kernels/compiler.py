"""Compiles the C sources into one library, where the machine has the instructions and a compiler."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from rerank_grpc.kept import cache_folder

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
FLAGS = (
    *("-O3", "-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512"),
    *("-fopenmp", "-fPIC", "-fvisibility=hidden", "-shared"),
)
COMPILE_SECONDS = 60


def instructions() -> bool:
    """Whether the CPU has the kernels' instructions, and no AMX, with which torch's own are faster."""
    cpu = torch.cpu
    has_both = cpu._is_avx512_bf16_supported() and cpu._is_vnni_supported()
    return bool(has_both and not cpu._is_amx_tile_supported())


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, compiled on the first call; None on a machine that cannot run or compile it."""
    if not instructions():
        return None
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        log.info("no C compiler: bf16 and int8 run without the kernels in C, slower")
        return None
    try:
        return _loaded(compiler)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the kernels in C were not compiled (%s): bf16 and int8 run slower", type(error).__name__)
        return None


def sources() -> list[Path]:
    """Lists the C files and their headers."""
    return sorted(path for path in FOLDER.iterdir() if path.suffix in (".c", ".h"))


def _loaded(compiler: str) -> ctypes.CDLL:
    """Loads the library; compiles once more where the one that was kept is damaged."""
    path = _compiled(compiler)
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        path.unlink(missing_ok=True)
        return ctypes.CDLL(str(_compiled(compiler)))


def _compiled(compiler: str) -> Path:
    """Compiles once for the sources, the flags and a version of the compiler, which name the file."""
    version = _run(compiler, "--version")
    parts = [version, *(flag.encode() for flag in FLAGS)]
    parts += [part for path in sources() for part in (path.name.encode(), path.read_bytes())]
    folder = cache_folder()
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()
    path = folder / f"kernels-{key[:16]}.so"
    if path.is_file() and path.stat().st_uid == os.geteuid():
        return path
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        made = Path(unfinished) / path.name
        _run(compiler, *FLAGS, *(str(each) for each in sources() if each.suffix == ".c"), "-o", str(made))
        made.replace(path)
    return path


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS).stdout
