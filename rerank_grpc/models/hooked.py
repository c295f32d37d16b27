"""Transformers' own bodies over packed sequences, with our attention: ModernBERT and decoders."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface

from rerank_grpc.kernels.attention import Attention, kernel_for
from rerank_grpc.kernels.base import Kernel, Layout
from rerank_grpc.kernels.causal import CausalParts, GatheredParts, attend_window, causal_parts
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.models.base import PackedTokens

# The name of our attention in transformers. No mask function may be registered under it: transformers
# would call it, and it synchronises the device; without one it makes no mask. And it may not contain
# "flash": transformers would take the model for one that its own integration runs.
HOOK = "rerank_grpc_packed"


class AttentionCall(NamedTuple):
    """The attention of all layers in one pass: causal if there are causal parts, else both ways."""

    layout: Layout
    kernel: Kernel | None
    causal: CausalParts | GatheredParts | None


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    call: AttentionCall,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attends as transformers' functions do: [1, heads, num_tokens, size] → [1, num_tokens, heads, size]."""
    layout, kernel, causal = call
    if causal is not None:
        return causal.attend_causal(module.layer_idx, query, key, value, scaling), None
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))  # [num_tokens, heads, size]
    k, v, keys = layout.seen(k, v)
    if kernel is not None and _aligned(layout, sliding_window):
        return kernel(q, k, v, layout, keys, window=sliding_window, scale=scaling)[None], None
    parts = zip(
        query.split(layout.lengths, dim=2),
        *(each.transpose(0, 1)[None].split(keys.lengths, dim=2) for each in (k, v)),
        strict=True,
    )
    mixed = [attend_window(q, k, v, scaling, sliding_window) for q, k, v in parts]
    return torch.cat(mixed, dim=2).transpose(1, 2).contiguous(), None


def _aligned(layout: Layout, window: int | None) -> bool:
    """Whether a kernel, to which the last query of a part is the place of its last key, sees the right keys.

    It does where all see all, and where nothing is far enough for the window to hide it.
    """
    if window is None or layout.keys is None:
        return True
    parts = zip(layout.lengths, layout.keys.lengths, strict=True)
    return all(rows == keys or rows <= window for rows, keys in parts)


AttentionInterface.register(HOOK, attend)


class HookedBody:
    """Runs a body that was read with the attention HOOK, has no segments and rotates by position."""

    def __init__(self, body: Any, precision: str, attention: Attention, *, causal: bool = False) -> None:
        # Not .to(dtype), which would round the frequencies of the rotary embedding as well.
        for weight in body.parameters():
            weight.data = weight.data.to(DTYPES[precision])
        self.body = body
        self._kernel = kernel_for(attention)
        self._causal = causal
        self._options = {"use_cache": False} if causal else {}

    def __call__(self, packed: PackedTokens) -> Tensor:
        causal = None
        if self._causal:
            causal = causal_parts(packed.contexts, packed.prefixes, packed.layout, self._kernel)
        output = self.body(
            input_ids=packed.input_ids[None],
            position_ids=packed.position_ids[None],
            call=AttentionCall(packed.layout, self._kernel, causal),
            **self._options,
        )
        rows: Tensor = output.last_hidden_state[0]
        return rows
