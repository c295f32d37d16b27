"""What encoder.py computes with: torch's operations, on a GPU and, for the tests, anywhere else."""

from __future__ import annotations

import torch
from torch.nn.functional import gelu as activate
from torch.nn.functional import linear

from rerank_grpc.kernels.attention import attend_by_length, kernel_for
from rerank_grpc.kernels.base import Layout
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.kernels.fused import TorchNorm
from rerank_grpc.kernels.linear import Linear
from rerank_grpc.models.base import ModelCard
from rerank_grpc.models.encoder import AddNorm, CpuOperations, Operations


def operations_for(card: ModelCard) -> Operations:
    """The operations of a model's device, precision and attention."""
    device = torch.device(card.device)
    if device.type == "cpu":
        return CpuOperations(card.precision)
    return TorchOperations(device, DTYPES[card.precision], card.attention)


class TorchOperations:
    """Computes in one type, waits for nothing, and with a kernel asks for no lengths."""

    def __init__(self, device: torch.device, dtype: torch.dtype, attention: str) -> None:
        self._device = device
        self._dtype = dtype
        self._attend = kernel_for(attention) or attend_by_length

    def table(self, weight: torch.Tensor) -> torch.Tensor:
        """See Operations."""
        return weight.to(self._device, self._dtype)

    def linear(self, weight: torch.Tensor, bias: torch.Tensor, *, gelu: bool = False) -> Linear:
        """See Operations."""
        return _Linear(self.table(weight), self.table(bias), gelu=gelu)

    def norm(self, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> AddNorm:
        """See Operations."""
        return TorchNorm(weight, bias, epsilon, self._device, self._dtype)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        queries: Layout,
        keys: Layout,
        heads: int,
    ) -> torch.Tensor:
        """See Operations."""
        q, k, v = (rows.unflatten(1, (heads, -1)) for rows in (query, key, value))
        return self._attend(q, k, v, queries, keys).flatten(1)


class _Linear:
    """cuBLAS adds the bias in the product; there is nothing for GELU to be fused with but itself."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, *, gelu: bool) -> None:
        self._weight, self._bias, self._gelu = weight, bias, gelu

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        out = linear(rows, self._weight, self._bias)
        return activate(out) if self._gelu else out
