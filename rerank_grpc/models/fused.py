"""Residual and norm in one pass over memory: compiled on a GPU, while the model is being loaded."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch
from torch.nn.functional import layer_norm

from rerank_grpc.models.native import cache_folder

log = logging.getLogger(__name__)

AddNorm: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]

# Where Inductor and Triton keep what they have compiled, so that the next start takes milliseconds.
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
# A single row is a case of its own for Inductor; any other number is one case.
WARM_ROWS = (1, 64)


def add_norm(
    rows: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Normalizes the rows of a sum in fp32, whatever their type; weight and bias are fp32."""
    total = rows.float() + residual.float()
    return layer_norm(total, weight.shape, weight, bias, epsilon).to(rows.dtype)


def add_norm_for(device: torch.device, dtype: torch.dtype, width: int, epsilon: float) -> AddNorm:
    """Compiled for a GPU: five passes over memory become one. As it is, elsewhere."""
    return compiled_add_norm(device, dtype, width, epsilon) if device.type == "cuda" else add_norm


@cache
def compiled_add_norm(device: torch.device, dtype: torch.dtype, width: int, epsilon: float) -> AddNorm:
    """Compiles for rows of one width; where there is no Triton or C compiler, the function itself."""
    for variable, name in CACHES.items():
        # Both read the environment only; an operator's own choice stays.
        os.environ.setdefault(variable, str(cache_folder() / name))
    compiled: AddNorm = torch.compile(add_norm)
    try:
        _call(compiled, device, dtype, width, epsilon)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        log.warning("sum and norm were not compiled (%s): they run slower", type(error).__name__)
        return add_norm
    return compiled


@torch.inference_mode()  # as the passes are: what is compiled without would be compiled again within
def _call(compiled: AddNorm, device: torch.device, dtype: torch.dtype, width: int, epsilon: float) -> None:
    weight = torch.ones(width, device=device)
    for count in WARM_ROWS:
        rows, residual = (torch.zeros(count, width, dtype=dtype, device=device) for _ in range(2))
        if count > 1:
            torch._dynamo.mark_dynamic(rows, 0)
            torch._dynamo.mark_dynamic(residual, 0)
        compiled(rows, residual, weight, weight.clone(), epsilon)
