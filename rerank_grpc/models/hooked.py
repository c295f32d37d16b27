"""Transformers' own bodies over packed sequences, with our attention: ModernBERT and decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
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


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """How the layers of one pass attend: causally if there are causal parts, else both ways."""

    layout: Layout
    kernel: Kernel | None
    causal: CausalParts | GatheredParts | None

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """[1, heads, num_tokens, size] three times → [1, num_tokens, heads, size]."""
        if self.causal is not None:
            return self.causal.attend_causal(layer, query, key, value, scale)
        if self.kernel is not None:
            q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
            return self.kernel(q, k, v, self.layout, self.layout, window=window, scale=scale)[None]
        parts = zip(*(each.split(self.layout.lengths, dim=2) for each in (query, key, value)), strict=True)
        mixed = [attend_window(q, k, v, scale, window) for q, k, v in parts]
        return torch.cat(mixed, dim=2).transpose(1, 2).contiguous()


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    call: AttentionCall,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attends as transformers' attention functions do; `call` comes from HookedBody."""
    return call(module.layer_idx, query, key, value, scaling, sliding_window), None


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

    def __call__(self, packed: PackedTokens) -> torch.Tensor:
        output = self.body(
            input_ids=packed.input_ids[None],
            position_ids=packed.position_ids[None],
            call=self._attention_call(packed),
            **self._options,
        )
        rows: torch.Tensor = output.last_hidden_state[0]
        return rows

    def _attention_call(self, packed: PackedTokens) -> AttentionCall:
        layout, causal = packed.layout_of_parts(), None
        if self._causal:
            causal = causal_parts(packed.contexts, packed.prefixes, layout, self._kernel)
        return AttentionCall(layout, self._kernel, causal)
