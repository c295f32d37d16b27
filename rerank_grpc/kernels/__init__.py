"""The operations of networks, by device, precision and attention."""

from __future__ import annotations

import torch

from rerank_grpc.kernels.attention import Attention
from rerank_grpc.kernels.base import Operations
from rerank_grpc.kernels.cpu import cpu_operations
from rerank_grpc.kernels.cuda import TorchOperations
from rerank_grpc.kernels.device import DTYPES


def operations_for(device: torch.device, precision: str, attention: Attention) -> Operations:
    """Makes the operations of a device; on the CPU the attention follows from the precision."""
    if device.type == "cpu":
        return cpu_operations(precision)
    return TorchOperations(device, DTYPES[precision], attention)
