"""Causal attention over packed parts, each of which may continue a prefix computed before or beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention

# Rows of a part that attend at once where it continues something: their mask is this high, and as
# wide as what they see, so that long documents need no mask of their length squared.
MASK_ROWS = 128

# How many tokens' keys and values a model keeps at most, over all requests: 0.9 GiB for
# Qwen3-Reranker-0.6B in bf16, and the prompts and queries of some 90 calls.
MAX_KEPT_TOKENS = 8_192


@dataclass(slots=True)
class KeysValues:
    """What a prefix, with all that stands before it, leaves to the tokens after it.

    Attributes:
        tokens: how many tokens that is; the next one has this position.
        layers: keys and values of each layer  # [1, key heads, tokens, size]
    """

    tokens: int
    layers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


class CausalParts:
    """How the parts of one pass hang together.

    Attributes:
        contexts: what each part continues; None where it begins at position 0.
        prefixes: the first parts are prefixes, and leave their keys and values
            here, from where later parts of the same pass may already take them.
    """

    def __init__(self, contexts: tuple[KeysValues | None, ...], prefixes: tuple[KeysValues, ...]) -> None:
        self.contexts = contexts
        self.prefixes = prefixes
        self._masks: dict[tuple[int, int, int], torch.Tensor] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: tuple[int, ...],
        scaling: float | None,
    ) -> torch.Tensor:
        """Attends to what stands before, part by part.

        Query, key and value are  # [1, heads, num_tokens, size], fewer heads of
        key and value; the result is  # [1, num_tokens, heads, size].
        """
        mixed = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        parts = zip(
            self.contexts,
            *(each.split(lengths, dim=2) for each in (query, key, value)),
            mixed.split(lengths, dim=1),
            strict=True,
        )
        for index, (context, q, k, v, out) in enumerate(parts):
            if context is not None:
                kept_k, kept_v = context.layers[layer]
                k, v = _join(kept_k, k), _join(kept_v, v)
            if index < len(self.prefixes):
                # Copies: a view would keep the keys of the whole batch.
                self.prefixes[index].layers.append((k.clone(), v.clone()))
            self._attend(q, k, v, scaling, out)
        return mixed

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float | None, out: torch.Tensor
    ) -> None:
        """Attends from the last rows of a context, into `out`  # [1, rows, heads, size]."""
        heads, rows, size = q.shape[1:]
        groups, columns = k.shape[1:3]
        if rows == columns:
            grouped = heads != groups
            mixed = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
            out.copy_(mixed.transpose(1, 2))
            return
        for start in range(0, rows, MASK_ROWS):
            block = q[:, :, start : start + MASK_ROWS]
            height, repeats = block.shape[2], heads // groups
            seen = columns - rows + start + height
            mask = self._mask(height, seen, repeats, q)
            # The query heads that share a key head become rows beside each other: keys are read once.
            mixed = scaled_dot_product_attention(
                block.reshape(1, groups, repeats * height, size),
                k[:, :, :seen],
                v[:, :, :seen],
                attn_mask=mask,
                scale=scaling,
            )
            target = out[0, start : start + height].unflatten(1, (groups, repeats))
            target.copy_(mixed[0].unflatten(1, (repeats, height)).permute(2, 0, 1, 3))

    def _mask(self, rows: int, columns: int, repeats: int, like: torch.Tensor) -> torch.Tensor:
        """The last rows of a causal mask, made once for all layers  # [repeats * rows, columns]."""
        mask = self._masks.get((rows, columns, repeats))
        if mask is None:
            infinite = torch.full((rows, columns), -torch.inf, dtype=like.dtype, device=like.device)
            mask = infinite.triu(columns - rows + 1).repeat(repeats, 1)
            self._masks[rows, columns, repeats] = mask
        return mask


def _join(kept: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Puts keys, or values, behind others  # [1, key heads, tokens, size].

    In memory tokens come before heads, and joined so, whole blocks are copied.
    """
    return torch.cat((kept.transpose(1, 2), own.transpose(1, 2)), dim=1).transpose(1, 2)
