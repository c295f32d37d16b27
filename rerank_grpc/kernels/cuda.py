"""The GPU's operations, of torch's own and a compiled sum and norm; they run on any device of torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import gelu as activate
from torch.nn.functional import layer_norm, linear

from rerank_grpc.kernels.attention import Attention, attend_by_length, kernel_for
from rerank_grpc.kernels.base import AddNorm, Layout, Linear, plain_norm

log = logging.getLogger(__name__)

Compiled: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


class TorchOperations:
    """Computes in one type and never waits for the device; with a kernel the host needs no lengths."""

    def __init__(self, device: torch.device, dtype: torch.dtype, attention: Attention) -> None:
        self._device = device
        self._dtype = dtype
        self._kernel = kernel_for(attention) or attend_by_length

    def table(self, weight: Tensor) -> Tensor:
        return weight.to(self._device, self._dtype)

    def linear(self, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Linear:
        # cuBLAS adds the bias in the product, and fuses no GELU with it
        held, added = self.table(weight), self.table(bias)
        if gelu:
            return lambda rows: activate(linear(rows, held, added))
        return partial(linear, weight=held, bias=added)

    def norm(self, weight: Tensor, bias: Tensor, epsilon: float) -> AddNorm:
        compiled = None
        if self._device.type == "cuda":
            compiled = compiled_add_norm(self._device, self._dtype, len(weight), epsilon)
        if compiled is None:
            # As transformers' own code rounds: in fp32 this would be five passes over memory, not two.
            return plain_norm(self.table(weight), self.table(bias), epsilon)
        held, added = weight.to(self._device), bias.to(self._device)
        return lambda rows, residual: compiled(rows, residual, held, added, epsilon)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, queries: Layout, keys: Layout, heads: int
    ) -> Tensor:
        q, k, v = (rows.unflatten(1, (heads, -1)) for rows in (query, key, value))
        return self._kernel(q, k, v, queries, keys).flatten(1)


def add_norm(rows: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalizes the rows of a sum in fp32, whatever their type; weight and bias are fp32."""
    total = rows.float() + residual.float()
    return layer_norm(total, weight.shape, weight, bias, epsilon).to(rows.dtype)


@cache
def compiled_add_norm(
    device: torch.device, dtype: torch.dtype, width: int, epsilon: float
) -> Compiled | None:
    """Compiles add_norm for rows of one width; None without Triton or a C compiler."""
    compiled: Compiled = torch.compile(add_norm)
    try:
        _call(compiled, device, dtype, width, epsilon)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        log.warning("sum and norm were not compiled (%s): they run slower", type(error).__name__)
        return None
    return compiled


@torch.inference_mode()  # as the passes are: code that is compiled without would be compiled again within
def _call(compiled: Compiled, device: torch.device, dtype: torch.dtype, width: int, epsilon: float) -> None:
    weight = torch.ones(width, device=device)
    for count in (1, 64):  # one row is a case of its own for Inductor; all other numbers are one case
        rows, residual = (torch.zeros(count, width, dtype=dtype, device=device) for _ in range(2))
        if count > 1:
            torch._dynamo.mark_dynamic(rows, 0)
            torch._dynamo.mark_dynamic(residual, 0)
        compiled(rows, residual, weight, weight.clone(), epsilon)
