"""The CPU's operations in fp32, bf16 and int8, by oneDNN or the kernels of kernels.c."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.functional import gelu as activate
from torch.nn.functional import scaled_dot_product_attention

from rerank_grpc.kernels.base import AddNorm, Layout, Linear, plain_norm
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.kernels.native import Kernels, kernels

# The number of rows for which oneDNN lays weights out; any other number works too.
ROWS = 2048
LEVELS = 127
ZERO = 128
# The shapes that kernels.c computes with.
NATIVE_HEADS = (16, 32, 48, 64)
NATIVE_WIDTH = 16
NATIVE_OUTPUTS, NATIVE_INPUTS = 64, 16


class CpuOperations:
    """Computes in fp32 or bf16; with int8 only the products of linear layers are int8."""

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self._dtype = DTYPES[precision]
        self._native = kernels() if self._dtype is torch.bfloat16 else None

    def table(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.to(self._dtype)

    def linear(self, weight: torch.Tensor, bias: torch.Tensor, *, gelu: bool = False) -> Linear:
        if self._precision != "int8":
            return plain_linear(weight, bias, self._dtype, gelu=gelu)
        quantized, scales = quantize_weight(weight)
        outputs, inputs = weight.shape
        if self._native is not None and outputs % NATIVE_OUTPUTS == 0 and inputs % NATIVE_INPUTS == 0:
            return native_int8_linear(self._native, quantized, scales, bias, gelu=gelu)
        return Int8Linear(quantized, scales, bias, gelu=gelu)

    def norm(self, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> AddNorm:
        if self._native is not None and len(weight) % NATIVE_WIDTH == 0:
            return partial(self._native.add_norm, weight=weight, bias=bias, epsilon=epsilon)
        # torch takes bf16 rows with weights in fp32, and then computes in fp32
        return plain_norm(weight, bias, epsilon)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        queries: Layout,
        keys: Layout,
        heads: int,
    ) -> torch.Tensor:
        size = query.shape[1] // heads
        if self._native is not None and size in NATIVE_HEADS:
            return self._native.attention(query, key, value, queries.starts, keys.starts, heads)
        # Part by part, so that no score depends on the neighbours: torch may add in another order otherwise.
        parts = zip(
            *(
                rows.unflatten(1, (heads, size)).transpose(0, 1)[None].split(layout.lengths, dim=2)
                for rows, layout in ((query, queries), (key, keys), (value, keys))
            ),
            strict=True,
        )
        mixed = [scaled_dot_product_attention(*part).transpose(1, 2).flatten(2)[0] for part in parts]
        return torch.cat(mixed)


def plain_linear(weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype, *, gelu: bool) -> Linear:
    """Lays out oneDNN's product in fp32 or bf16, with bias and GELU in the same pass."""
    multiply = torch.ops.mkldnn._linear_pointwise
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), ROWS)
    added = bias.to(dtype)
    after: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
    return lambda rows: multiply(rows, packed, added, *after)


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds each output's weights to int8 with a scale of their own."""
    scales = (weight.abs().amax(dim=1) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scales[:, None]).round().to(torch.int8), scales


def weight_sums(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Sums each output's weights: its product with a row of ones, without the bias  # [outputs] float32."""
    return weight.sum(dim=1, dtype=torch.float32) * scales


def native_int8_linear(
    native: Kernels, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor, *, gelu: bool
) -> Linear:
    """Lays out the product of kernels.c, which quantizes each row with a scale and a middle of its own."""
    return partial(
        native.linear_int8,
        packed=native.pack_int8(weight),
        scales=scales.contiguous(),
        weight_sums=weight_sums(weight, scales),
        bias=bias.float().contiguous(),
        gelu=gelu,
    )


class Int8Linear:
    """The same by torch's operations: oneDNN takes one scale, so the scales of the rows come after it."""

    def __init__(self, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor, *, gelu: bool) -> None:
        self._weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self._scales = scales
        self._sums = weight_sums(weight, scales)
        self._zeros = torch.zeros(len(scales), dtype=torch.int32)
        self._bias = bias.float()
        self._gelu = gelu

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        values = rows.float()
        low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
        middles = low + (high - low) / 2  # the outputs of GELU lie to one side of 0
        row_scales = ((high - low) / 2 / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
        # oneDNN is fast for unsigned rows only.
        quantized = ((values - middles) / row_scales).round().add_(ZERO).to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise(
            *(quantized, 1.0, ZERO, self._weight, self._scales, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        out = torch.addcmul(self._bias, product, row_scales).addcmul_(middles, self._sums)
        return (activate(out) if self._gelu else out).to(rows.dtype)
