"""Attention within a window: a token sees only those that stand near it, on both sides."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

# Queries that are computed together; more of them compute more that the mask then hides.
BLOCK = 256


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None
) -> torch.Tensor:
    """Attends within one sequence, both ways  # [1, heads, num_tokens, size].

    With `window`, token i sees token j where |i - j| < window, as transformers'
    `sliding_window` means it; the time then grows with the length, not its square.
    """
    length = query.shape[2]
    if window is None or length <= window:
        return scaled_dot_product_attention(query, key, value, scale=scale)
    places = torch.arange(length, device=query.device)
    parts = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        low, high = max(0, start - window + 1), min(length, end + window - 1)
        near = (places[start:end, None] - places[None, low:high]).abs() < window  # [queries, keys]
        parts.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, low:high],
                value[:, :, low:high],
                attn_mask=near,
                scale=scale,
            )
        )
    return torch.cat(parts, dim=2)
