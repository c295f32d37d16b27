"""The GPU's operations, of torch's own and a compiled sum and norm; they run on any device of torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import TypeAlias

import torch
from torch import Tensor

from rerank_grpc.kernels.attention import Attention, attend_by_length, kernel_for
from rerank_grpc.kernels.base import AddNorm, Heads, Layout, Turns
from rerank_grpc.kernels.plain import PlainOperations, add_then_norm, plain_norm

log = logging.getLogger(__name__)

# From added rows, residual, weight and bias to the normalized rows and the next residual
Compiled: TypeAlias = Callable[[Tensor | None, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


class TorchOperations(PlainOperations):
    """Computes in one type and never waits for the device; with a kernel the host needs no lengths."""

    def __init__(self, device: torch.device, dtype: torch.dtype, attention: Attention) -> None:
        super().__init__(device, dtype, kernel_for(attention))

    def norm(
        self, weight: Tensor, bias: Tensor | None, epsilon: float, *, rms: bool, keeps_sum: bool
    ) -> AddNorm:
        if self._device.type == "cuda":
            compiled = compiled_add_norm(self._device, self._dtype, len(weight), epsilon, rms, keeps_sum)
            if compiled is not None:
                held, shift = weight.to(self._device), None if bias is None else bias.to(self._device)
                return lambda added, residual: compiled(added, residual, held, shift)
        # As transformers' own code rounds: in fp32 this would be five passes over memory, not two.
        return super().norm(
            self.table(weight),
            None if bias is None else self.table(bias),
            epsilon,
            rms=rms,
            keeps_sum=keeps_sum,
        )

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Layout,
        keys: Layout,
        heads: Heads,
        turns: tuple[Turns, Turns] | None = None,
    ) -> Tensor:
        if self._kernel is not None or turns is not None or heads.groups != heads.count:
            return super().attend(query, key, value, queries, keys, heads, turns)
        q, k, v = (rows.unflatten(1, (-1, heads.size)) for rows in (query, key, value))
        return attend_by_length(q, k, v, queries, keys).flatten(1)


@cache
def compiled_add_norm(
    device: torch.device, dtype: torch.dtype, width: int, epsilon: float, rms: bool, keeps_sum: bool
) -> Compiled | None:
    """Compiles an AddNorm for rows of one width; None without Triton or a C compiler."""

    def add_norm(
        added: Tensor | None, residual: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        normalize = partial(plain_norm, weight=weight, bias=bias, epsilon=epsilon, rms=rms)
        return add_then_norm(normalize, added, residual, keeps_sum=keeps_sum)

    compiled: Compiled = torch.compile(add_norm)
    try:
        _call(compiled, device, dtype, width, biased=not rms)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        log.warning("sum and norm were not compiled (%s): they run slower", type(error).__name__)
        return None
    return compiled


@torch.inference_mode()  # as the passes are: code that is compiled without would be compiled again within
def _call(compiled: Compiled, device: torch.device, dtype: torch.dtype, width: int, *, biased: bool) -> None:
    weight = torch.ones(width, device=device)
    for count in (1, 64):  # one row is a case of its own for Inductor; all other numbers are one case
        rows, residual = (torch.zeros(count, width, dtype=dtype, device=device) for _ in range(2))
        if count > 1:
            torch._dynamo.mark_dynamic(rows, 0)
            torch._dynamo.mark_dynamic(residual, 0)
        compiled(rows, residual, weight, weight.clone() if biased else None)
