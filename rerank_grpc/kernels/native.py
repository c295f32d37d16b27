"""The kernels of kernels.c, compiled at load where the machine has both the instructions and a compiler.

Without them torch's own operations give the same results, slower.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rerank_grpc.kept import cache_folder

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = (
    *("-O3", "-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mprefer-vector-width=512"),
    *("-fopenmp", "-fPIC", "-shared"),
)
COMPILE_SECONDS = 60
CACHE_LINE = 64  # bytes

_int, _long, _float, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


def instructions() -> bool:
    """Whether the CPU has the kernels' instructions, and no AMX, with which torch's own are faster."""
    cpu = torch.cpu
    has_both = cpu._is_avx512_bf16_supported() and cpu._is_vnni_supported()
    return bool(has_both and not cpu._is_amx_tile_supported())


@functools.cache
def kernels() -> Kernels | None:
    """The kernels, compiled on the first call; None on a machine that cannot run or compile them."""
    if not instructions():
        return None
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        log.info("no C compiler: bf16 and int8 run without the kernels of kernels.c, slower")
        return None
    try:
        return Kernels(_compiled(compiler))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("kernels.c was not compiled (%s): bf16 and int8 run slower", type(error).__name__)
        return None


def _compiled(compiler: str) -> Path:
    """Compiles kernels.c once for a source, flags and a version of the compiler, which name the file."""
    version = _run(compiler, "--version")
    key = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), version, *(flag.encode() for flag in FLAGS)]))
    folder = cache_folder()
    path = folder / f"kernels-{key.hexdigest()[:16]}.so"
    if path.is_file() and path.stat().st_uid == os.getuid():
        return path
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        made = Path(unfinished) / path.name
        _run(compiler, *FLAGS, str(SOURCE), "-o", str(made))
        made.replace(path)
    return path


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SECONDS).stdout


class Kernels:
    """Typed calls; all tensors lie on the CPU and end in a contiguous dimension."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))

        def function(name: str, *arguments: Any, result: Any = None) -> Callable[..., Any]:
            found = library[name]
            found.argtypes, found.restype = arguments, result
            return found

        self._pack_int8 = function("pack_int8", _pointer, _long, _long, _pointer)
        self._quantize = function("quantize", _pointer, _long, _long, *[_pointer] * 4, _int)
        self._linear_int8 = function("linear_int8", *[_pointer] * 9, _long, _long, _long, _int, _int)
        self._add_norm = function("add_norm", *[_pointer] * 4, _float, _long, _long, _pointer, _int)
        self._attention = function(
            "attention",
            *(_pointer, _long, _pointer, _pointer, _long, _pointer, _long, _pointer, _pointer),
            *(_long, _long, _long, _float, _int),
            result=_int,
        )

    def pack_int8(self, weight: Tensor) -> Tensor:
        """Lays an int8 weight  # [n, k]  out for linear_int8; n is a multiple of 64, k of 16."""
        n, k = weight.shape
        buffer = torch.empty(n * k + CACHE_LINE, dtype=torch.uint8)
        packed = buffer[-buffer.data_ptr() % CACHE_LINE :][: n * k]
        self._pack_int8(weight.contiguous().data_ptr(), n, k, packed.data_ptr())
        return packed

    def linear_int8(
        self, rows: Tensor, packed: Tensor, scales: Tensor, weight_sums: Tensor, bias: Tensor, *, gelu: bool
    ) -> Tensor:
        """Quantizes rows, each with its own scale and middle, and multiplies  # bf16 [m, k] → [m, n]."""
        (m, k), n, threads = rows.shape, len(scales), torch.get_num_threads()
        quantized = torch.empty(m, k, dtype=torch.int8)
        row_scales, middles, sums = torch.empty(m), torch.empty(m), torch.empty(m, dtype=torch.int32)
        places = quantized.data_ptr(), row_scales.data_ptr(), middles.data_ptr(), sums.data_ptr()
        self._quantize(rows.data_ptr(), m, k, *places, threads)
        out = torch.empty(m, n, dtype=torch.bfloat16)
        self._linear_int8(
            *places,
            *(packed.data_ptr(), scales.data_ptr(), weight_sums.data_ptr(), bias.data_ptr(), out.data_ptr()),
            *(m, n, k, gelu, threads),
        )
        return out

    def add_norm(
        self, rows: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float
    ) -> Tensor:
        """Normalizes the sum of two bf16 matrices row by row; weight and bias are fp32."""
        out = torch.empty_like(rows)
        self._add_norm(
            *(rows.data_ptr(), residual.data_ptr(), weight.data_ptr(), bias.data_ptr()),
            *(epsilon, *rows.shape, out.data_ptr(), torch.get_num_threads()),
        )
        return out

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, query_starts: Tensor, key_starts: Tensor, heads: int
    ) -> Tensor:
        """Attends within each part, both ways; all are bf16  # [rows, heads · size].

        `key` and `value` have one stride. `*_starts` hold where each sequence
        begins, and the end  # [num_sequences + 1] int32.
        """
        rows, width = query.shape
        out = torch.empty(rows, width, dtype=torch.bfloat16)
        size = width // heads
        failed = self._attention(
            *(query.data_ptr(), query.stride(0), key.data_ptr(), value.data_ptr(), key.stride(0)),
            *(out.data_ptr(), width, query_starts.data_ptr(), key_starts.data_ptr()),
            *(len(query_starts) - 1, heads, size, size**-0.5, torch.get_num_threads()),
        )
        if failed:
            raise MemoryError
        return out
