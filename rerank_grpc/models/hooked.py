"""Attention over packed sequences, as transformers' own model code calls it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface

from rerank_grpc.kernels.attention import FLASH, SDPA, VARLEN, kernel_for
from rerank_grpc.kernels.base import Layout
from rerank_grpc.kernels.causal import CausalParts
from rerank_grpc.kernels.gathered import GatheredParts
from rerank_grpc.kernels.window import attend

# What transformers knows them by. No mask function may be registered under these names: transformers
# would call it, and it synchronises the device; for a name it does not know it makes no mask. And none
# may contain "flash": it would take the model for one that its own integration runs.
NAMES = {
    SDPA: "rerank_grpc_packed",
    VARLEN: "rerank_grpc_packed_varlen",
    FLASH: "rerank_grpc_packed_fa",
}


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sequence_lengths: tuple[int, ...],
    causal_parts: CausalParts | GatheredParts | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attends within each sequence; query, key and value are  # [1, heads, num_tokens, size].

    Both ways, or with `causal_parts` to what stands before, which there may
    also be a prefix, and with fewer heads for key and value than for query.
    Returns [1, num_tokens, heads, size], as transformers' attention functions do.
    """
    if causal_parts is not None:
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        return causal_parts.attend(layer, query, key, value, sequence_lengths, scaling), None
    parts = [
        attend(q, k, v, scaling, sliding_window)
        for q, k, v in zip(
            query.split(sequence_lengths, dim=2),
            key.split(sequence_lengths, dim=2),
            value.split(sequence_lengths, dim=2),
            strict=True,
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def kernel_attention(
    name: str,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sequence_lengths: tuple[int, ...],
    layout: Layout,
    causal_parts: CausalParts | GatheredParts | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """As packed_attention, in one call of the kernel `name`, which does not ask the host for lengths."""
    if causal_parts is not None:
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        return causal_parts.attend(layer, query, key, value, sequence_lengths, scaling), None
    kernel = kernel_for(name)
    assert kernel is not None
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))  # [num_tokens, heads, size]
    return kernel(q, k, v, layout, layout, window=sliding_window, scale=scaling)[None], None


AttentionInterface.register(NAMES[SDPA], packed_attention)
for _name in (VARLEN, FLASH):
    AttentionInterface.register(NAMES[_name], partial(kernel_attention, _name))
