"""The CPU's operations in fp32, bf16 and int8, by oneDNN or the kernels in C."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu as activate
from torch.nn.functional import scaled_dot_product_attention

from rerank_grpc.kernels.base import AddNorm, Layout, Linear, plain_norm
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.kernels.native import HEAD_SIZES, INT8_OUTPUTS, WIDTHS, Kernels, kernels

LEVELS = 127
ZERO = 128


class CpuOperations:
    """Computes in fp32 or bf16; with int8 only the products of linear layers are int8."""

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self._dtype = DTYPES[precision]
        self._native = kernels() if self._dtype is torch.bfloat16 else None

    def table(self, weight: Tensor) -> Tensor:
        return weight.to(self._dtype)

    def linear(self, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Linear:
        if self._precision != "int8":
            return plain_linear(weight, bias, self._dtype, gelu=gelu)
        quantized, scales = quantize_weight(weight)
        outputs, inputs = weight.shape
        if self._native is not None and outputs % INT8_OUTPUTS == 0 and inputs % WIDTHS == 0:
            return native_int8_linear(self._native, quantized, scales, bias, gelu=gelu)
        return Int8Linear(quantized, scales, bias, gelu=gelu)

    def norm(self, weight: Tensor, bias: Tensor, epsilon: float) -> AddNorm:
        if self._native is not None and len(weight) % WIDTHS == 0:
            return native_norm(self._native, weight, bias, epsilon)
        # torch takes bf16 rows with weights in fp32, and then computes in fp32
        return plain_norm(weight, bias, epsilon)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, queries: Layout, keys: Layout, heads: int
    ) -> Tensor:
        size = query.shape[1] // heads
        if self._native is not None and size in HEAD_SIZES:
            return self._native.attention(
                *(query, key, value, queries.starts, keys.starts),
                heads=heads,
                key_heads=heads,
                scale=size**-0.5,
            )
        # Part by part, so that no score depends on the neighbours: torch may add in another order otherwise.
        q = query.unflatten(1, (heads, size)).transpose(0, 1)[None].split(queries.lengths, dim=2)
        k = key.unflatten(1, (heads, size)).transpose(0, 1)[None].split(keys.lengths, dim=2)
        v = value.unflatten(1, (heads, size)).transpose(0, 1)[None].split(keys.lengths, dim=2)
        mixed = [scaled_dot_product_attention(*part).transpose(1, 2) for part in zip(q, k, v, strict=True)]
        return torch.cat(mixed, dim=1).flatten(2)[0]


def plain_linear(weight: Tensor, bias: Tensor, dtype: torch.dtype, *, gelu: bool) -> Linear:
    """Lays out oneDNN's product in fp32 or bf16, with bias and GELU in the same pass."""
    # Laid out for this number of rows; any other works too.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), 2048)
    after = {"attr": "gelu", "algorithm": "none"} if gelu else {"attr": "none", "algorithm": ""}
    return partial(torch.ops.mkldnn._linear_pointwise, W=packed, B=bias.to(dtype), scalars=[], **after)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each output's weights to int8 with a scale of their own."""
    scales = (weight.abs().amax(dim=1) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scales[:, None]).round().to(torch.int8), scales


def weight_sums(weight: Tensor, scales: Tensor) -> Tensor:
    """Sums each output's weights: its product with a row of ones, without the bias  # [outputs] float32."""
    return weight.sum(dim=1, dtype=torch.float32) * scales


def native_norm(native: Kernels, weight: Tensor, bias: Tensor, epsilon: float) -> AddNorm:
    """Makes an AddNorm of the kernel in C, which does not round the sum."""

    def add_norm(rows: Tensor, residual: Tensor) -> Tensor:
        return native.norm(rows, residual, weight, bias, epsilon, rms=False, keeps_sum=False)[0]

    return add_norm


def native_int8_linear(
    native: Kernels, weight: Tensor, scales: Tensor, bias: Tensor, *, gelu: bool
) -> Linear:
    """Lays out the product in C, which quantizes each row with a scale and a middle of its own."""
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

    def __init__(self, weight: Tensor, scales: Tensor, bias: Tensor, *, gelu: bool) -> None:
        self._weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self._scales = scales
        self._sums = weight_sums(weight, scales)
        self._zeros = torch.zeros(len(scales), dtype=torch.int32)
        self._bias = bias.float()
        self._gelu = gelu

    def __call__(self, rows: Tensor) -> Tensor:
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
