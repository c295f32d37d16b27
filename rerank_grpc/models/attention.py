"""Attention over packed sequences: the one place that chooses how it is computed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from rerank_grpc.models.causal import CausalParts
from rerank_grpc.models.window import attend

# No mask function may be registered under this name: transformers would call it,
# and it synchronises the device; for a name it does not know it makes no mask.
NAME = "rerank_grpc_packed"
BACKEND = "packed (sdpa)"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sequence_lengths: tuple[int, ...],
    causal_parts: CausalParts | None = None,
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


AttentionInterface.register(NAME, packed_attention)
