"""Typed calls of the kernels in C; without them torch's own operations give the same results, slower.

Matrices are bf16, lie on the CPU, and have a contiguous last dimension; one that may be a view of the columns
of a wider one says so. Numbers of rows are any, 0 too. Arithmetic is in fp32, and no row depends on
another, nor a part on its neighbours, to the last bit.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rerank_grpc.kernels.base import Activation
from rerank_grpc.kernels.library import Library, library

AllAngles: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]  # cosines and sines of queries, then of keys

ACTIVATIONS: tuple[Activation, ...] = ("gelu", "gelu_tanh", "silu")  # in the order of kernels.h
TURNS = ("query_cosines", "query_sines", "key_cosines", "key_sines")
WIDTHS = 16  # a row's width is a multiple of this
HEAD_SIZES = range(16, 257, 16)
INT8_OUTPUTS = 64  # an int8 weight's number of outputs is a multiple of this
CACHE_LINE = 64  # bytes

_int, _long, _float, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


def kernels() -> Kernels | None:
    """The kernels of the best level that this machine and RERANK_KERNELS allow; None where torch computes."""
    found = library()
    return None if found is None else _kernels(found)


@functools.cache
def _kernels(found: Library) -> Kernels:
    return Kernels(found.functions, found.level)


class _Prefix(ctypes.Structure):
    """A struct prefix of kernels.h."""

    _fields_ = (
        *((name, _pointer) for name in ("key", "value")),
        *((name, _long) for name in ("key_stride", "key_head", "value_stride", "value_head", "tokens")),
    )


class _Attention(ctypes.Structure):
    """A struct attention of kernels.h; what is not given is 0, or NULL."""

    _fields_ = (
        *((name, _pointer) for name in ("query", "key", "value", "out")),
        *((name, _long) for name in ("query_stride", "key_stride", "value_stride")),
        *((name, _pointer) for name in ("query_starts", "key_starts")),
        *((name, _long) for name in ("parts", "heads", "key_heads", "size")),
        *((name, _pointer) for name in TURNS),
        *((name, _pointer) for name in ("prefixes", "continued")),
        *((name, _long) for name in ("prefix_count", "window")),
        ("scale", _float),
        *((name, _int) for name in ("causal", "threads")),
    )


class Kernels:
    """The functions of the library, compiled for a level of processors."""

    def __init__(self, found: ctypes.CDLL, level: str) -> None:
        self.level = level

        def function(name: str, *arguments: Any, result: Any = None) -> Callable[..., Any]:
            call = found[name]
            call.argtypes, call.restype = arguments, result
            return call

        self._pack_int8 = function("pack_int8", _pointer, _long, _long, _pointer)
        self._codes = torch.int8 if function("code_bytes", result=_int)() == 1 else torch.int16
        self._quantize = function("quantize", _pointer, _long, _long, *[_pointer] * 4, _int)
        self._linear_int8 = function("linear_int8", *[_pointer] * 9, _long, _long, _long, _int, _int)
        self._norm = function("norm", *[_pointer] * 4, _float, _long, _long, _int, _int, _pointer, _int)
        self._gate = function("gate", _pointer, _long, _long, _int, _pointer, _int)
        self._turn = function("turn", _pointer, *[_long] * 4, _pointer, _float, _pointer, _pointer, _int)
        self._attention = function("attention", ctypes.POINTER(_Attention), result=_int)

    def pack_int8(self, weight: Tensor) -> Tensor:
        """Lays an int8 weight  # [n, k]  out for linear_int8; n is a multiple of 64, k of 16."""
        n, k = weight.shape
        rows = weight.contiguous()  # which is held during the call
        buffer = torch.empty(n * k + CACHE_LINE, dtype=torch.uint8)
        packed = buffer[-buffer.data_ptr() % CACHE_LINE :][: n * k]
        self._pack_int8(rows.data_ptr(), n, k, packed.data_ptr())
        return packed

    def linear_int8(
        self, rows: Tensor, packed: Tensor, scales: Tensor, weight_sums: Tensor, bias: Tensor, *, gelu: bool
    ) -> Tensor:
        """Quantizes rows, each with its own scale and middle, and multiplies  # bf16 [m, k] → [m, n]."""
        (m, k), n, threads = rows.shape, len(scales), torch.get_num_threads()
        quantized = torch.empty(m, k, dtype=self._codes)
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

    def norm(
        self,
        added: Tensor | None,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        epsilon: float,
        *,
        rms: bool,
        keeps_sum: bool,
    ) -> tuple[Tensor, Tensor]:
        """Normalizes residual + added row by row; returns the normed rows and the next residual.

        The matrices are [rows, width], weight and bias fp32 [width], width a multiple of 16. A layer
        norm, or with `rms` an RMS norm. With `keeps_sum` the sum, rounded to bf16, is written over
        `residual`, normalized as rounded, and the next residual; else that is the normed rows.
        """
        out = torch.empty_like(residual)
        self._norm(
            *(_address(added), residual.data_ptr(), weight.data_ptr(), _address(bias), epsilon),
            *(*residual.shape, rms, keeps_sum, out.data_ptr(), torch.get_num_threads()),
        )
        return out, residual if keeps_sum else out

    def gate(self, rows: Tensor, activation: Activation) -> Tensor:
        """Activates the left half of each row, times the right half  # [n, 2 · width] → [n, width].

        Width is a multiple of 16, the activation one of ACTIVATIONS. "gelu" is the exact one, by erf.
        """
        count, width = rows.shape[0], rows.shape[1] // 2
        out = torch.empty(count, width, dtype=torch.bfloat16)
        kind = ACTIVATIONS.index(activation)
        self._gate(rows.data_ptr(), count, width, kind, out.data_ptr(), torch.get_num_threads())
        return out

    def turn(
        self,
        rows: Tensor,
        cosines: Tensor,
        sines: Tensor,
        *,
        heads: int,
        weight: Tensor | None,
        epsilon: float,
    ) -> None:
        """Normalizes each head of each row by an RMS norm, if there is a weight, and rotates it, in place.

        Rows are  # [n, heads · size], perhaps columns of a wider matrix, size in HEAD_SIZES; the weight is
        fp32 [size], cosines and sines fp32 [n, size / 2]. The first half of a head turns with its second.
        """
        count, width = rows.shape
        self._turn(
            *(rows.data_ptr(), rows.stride(0), count, heads, width // heads, _address(weight), epsilon),
            *(cosines.data_ptr(), sines.data_ptr(), torch.get_num_threads()),
        )

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_starts: Tensor,
        key_starts: Tensor,
        *,
        heads: int,
        key_heads: int,
        scale: float,
        window: int | None = None,
        turns: AllAngles | None = None,
    ) -> Tensor:
        """Attends within each part, both ways  # [queries, heads · size] → the same.

        Key and value are  # [keys, key_heads · size], size in HEAD_SIZES, and `heads` a multiple of
        `key_heads`; all three may be columns of wider matrices. `*_starts` hold where each part
        begins, and the end  # [parts + 1] int32. With `window`, token i sees token j where
        |i - j| < window; query r of a part stands at the place of its key r, and one that sees
        nothing gets 0. `turns` rotate queries and keys by their rows' angles  # fp32 [rows, size / 2].
        """
        angles: dict[str, Any] = dict(zip(TURNS, map(_address, turns or ()), strict=False))
        return self._attend(
            *(query, key, value, query_starts, key_starts),
            heads=heads,
            key_heads=key_heads,
            scale=scale,
            window=window or 0,
            **angles,
        )

    def causal_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_starts: Tensor,
        key_starts: Tensor,
        prefixes: Sequence[tuple[Tensor, Tensor]] = (),
        continued: Tensor | None = None,
        *,
        heads: int,
        key_heads: int,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """Attends causally within each part, behind the prefix it continues  # [queries, heads · size].

        Shapes are those of `attention`; the last query of a part stands at the place of its last key.
        `prefixes` are kept keys and values, turned, each once  # [1, key_heads, tokens, size], which
        may be transposed views; part i continues prefixes[continued[i]], none if that is -1
        # [parts] int32. With `window`, token i sees token j where i - window < j <= i; tokens of the
        prefix count.
        """
        listed = (_Prefix * len(prefixes))(*(_prefix(*each) for each in prefixes))
        return self._attend(
            *(query, key, value, query_starts, key_starts),
            heads=heads,
            key_heads=key_heads,
            scale=scale,
            window=window or 0,
            causal=True,
            prefixes=ctypes.addressof(listed),
            prefix_count=len(prefixes),
            continued=_address(continued),
        )

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_starts: Tensor,
        key_starts: Tensor,
        *,
        heads: int,
        **fields: Any,
    ) -> Tensor:
        """Calls the kernel with further fields of _Attention; raises MemoryError."""
        out = torch.empty(query.shape, dtype=torch.bfloat16)
        call = _Attention(
            *(each.data_ptr() for each in (query, key, value, out)),
            *(each.stride(0) for each in (query, key, value)),
            *(query_starts.data_ptr(), key_starts.data_ptr(), len(query_starts) - 1),
            heads=heads,
            size=query.shape[1] // heads,
            threads=torch.get_num_threads(),
            **fields,
        )
        if self._attention(ctypes.byref(call)):
            raise MemoryError
        return out


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _prefix(key: Tensor, value: Tensor) -> _Prefix:
    strides = (key.stride(2), key.stride(1), value.stride(2), value.stride(1))
    return _Prefix(key.data_ptr(), value.data_ptr(), *strides, key.shape[2])
