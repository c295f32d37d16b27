"""Linear layers on the CPU, by precision: weights are laid out once, when the model is loaded."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn.functional import gelu

from rerank_grpc.kernels.native import Kernels, kernels

# Weights are laid out for about so many rows; any other number works too.
ROWS = 2048
LEVELS = 127
ZERO = 128


class Linear(Protocol):
    """Multiplies rows by the weights, adds the bias, and perhaps applies GELU."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """[num_rows, inputs] → [num_rows, outputs], in the type of the rows."""


def linear(precision: str, weight: torch.Tensor, bias: torch.Tensor, *, gelu: bool = False) -> Linear:
    """Lays a layer out for "fp32", "bf16" or "int8"; weight [outputs, inputs] and bias are fp32."""
    if precision != "int8":
        return PlainLinear(weight, bias, torch.bfloat16 if precision == "bf16" else torch.float32, gelu=gelu)
    quantized, scales = quantize_weight(weight)
    native = kernels()
    if native is not None and weight.shape[0] % 64 == 0 and weight.shape[1] % 16 == 0:
        return NativeInt8Linear(native, quantized, scales, bias, gelu=gelu)
    return Int8Linear(quantized, scales, bias, gelu=gelu)


def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds each output's weights to int8 with a scale of their own."""
    scales = (weight.abs().amax(dim=1) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scales[:, None]).round().to(torch.int8), scales


def weight_sums(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Returns what each output makes of a row of ones, without its bias  # [outputs] float32."""
    return weight.sum(dim=1, dtype=torch.float32) * scales


class PlainLinear:
    """oneDNN's product in fp32 or bf16, with bias and GELU in the same pass."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype, *, gelu: bool) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), ROWS)
        self._bias = bias.to(dtype)
        self._after: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, *self._after)
        return out


class NativeInt8Linear:
    """The product of kernels.c: rows are quantized on the fly, each with a scale and a middle of its own."""

    def __init__(
        self,
        native: Kernels,
        weight: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor,
        *,
        gelu: bool,
    ) -> None:
        self._native = native
        self._weight = native.pack_int8(weight)
        self._scales = scales.contiguous()
        self._sums = weight_sums(weight, scales)
        self._bias = bias.float().contiguous()
        self._gelu = gelu

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        tables = (self._weight, self._scales, self._sums, self._bias)
        return self._native.linear_int8(rows, *tables, gelu=self._gelu)


class Int8Linear:
    """The same out of torch's operations: oneDNN takes one scale, so the rows' own come after it."""

    def __init__(self, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor, *, gelu: bool) -> None:
        self._weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self._scales = scales
        self._sums = weight_sums(weight, scales)
        self._zeros = torch.zeros(len(scales), dtype=torch.int32)
        self._bias = bias.float()
        self._gelu = gelu

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """See Linear."""
        values = rows.float()
        low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
        middles = low + (high - low) / 2  # what GELU leaves lies to one side of 0
        row_scales = ((high - low) / 2 / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
        # oneDNN is fast for unsigned rows only.
        quantized = ((values - middles) / row_scales).round().add_(ZERO).to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise(
            *(quantized, 1.0, ZERO, self._weight, self._scales, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        out = torch.addcmul(self._bias, product, row_scales).addcmul_(middles, self._sums)
        return (gelu(out) if self._gelu else out).to(rows.dtype)
