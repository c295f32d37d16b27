"""Residual and norm in one pass over memory: compiled on a GPU, while the model is being loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import torch
from torch.nn.functional import layer_norm

from rerank_grpc.config.reading import provide
from rerank_grpc.kernels.native import cache_folder

log = logging.getLogger(__name__)

Compiled: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]

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


class TorchNorm:
    """Adds two matrices of one type and normalizes the rows of the sum; see encoder.AddNorm.

    Without a compiler the sum is rounded to that type before the norm, and so
    are its weights, as in transformers' own code: in fp32 they would be five
    passes over memory instead of two.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        epsilon: float,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._compiled: Compiled | None = None
        if device.type == "cuda":
            self._compiled = compiled_add_norm(device, dtype, len(weight), epsilon)
        held = dtype if self._compiled is None else torch.float32
        self._weight, self._bias = weight.to(device, held), bias.to(device, held)
        self._epsilon = epsilon

    def __call__(self, rows: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden] twice → [num_rows, hidden]."""
        if self._compiled is not None:
            return self._compiled(rows, residual, self._weight, self._bias, self._epsilon)
        return layer_norm(rows + residual, self._weight.shape, self._weight, self._bias, self._epsilon)


@cache
def compiled_add_norm(
    device: torch.device, dtype: torch.dtype, width: int, epsilon: float
) -> Compiled | None:
    """Compiles add_norm for rows of one width; None where there is no Triton or no C compiler."""
    for variable, name in CACHES.items():
        provide(variable, str(cache_folder() / name))
    compiled: Compiled = torch.compile(add_norm)
    try:
        _call(compiled, device, dtype, width, epsilon)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        log.warning("sum and norm were not compiled (%s): they run slower", type(error).__name__)
        return None
    return compiled


@torch.inference_mode()  # as the passes are: what is compiled without would be compiled again within
def _call(compiled: Compiled, device: torch.device, dtype: torch.dtype, width: int, epsilon: float) -> None:
    weight = torch.ones(width, device=device)
    for count in WARM_ROWS:
        rows, residual = (torch.zeros(count, width, dtype=dtype, device=device) for _ in range(2))
        if count > 1:
            torch._dynamo.mark_dynamic(rows, 0)
            torch._dynamo.mark_dynamic(residual, 0)
        compiled(rows, residual, weight, weight.clone(), epsilon)
