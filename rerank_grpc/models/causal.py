"""Causal attention over packed parts, each of which may continue a prefix computed before or beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention

# Rows of a part that attend at once where it continues something: their mask is this high, and as
# wide as what they see, so that long documents need no mask of their length squared.
MASK_ROWS = 1024


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
    ) -> list[torch.Tensor]:
        """Attends to what stands before, part by part; see attention.packed_attention for the shapes."""
        outputs = []
        parts = zip(self.contexts, *(each.split(lengths, dim=2) for each in (query, key, value)), strict=True)
        for index, (context, q, k, v) in enumerate(parts):
            if context is not None:
                kept_k, kept_v = context.layers[layer]
                k, v = torch.cat((kept_k, k), dim=2), torch.cat((kept_v, v), dim=2)
            if index < len(self.prefixes):
                # Copies: a view would keep the keys of the whole batch.
                self.prefixes[index].layers.append((k.clone(), v.clone()))
            outputs.append(self._attend(q, k, v, scaling))
        return outputs

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Attends from the last rows of a context; q is  # [1, heads, rows, size]."""
        heads, rows, size = q.shape[1:]
        groups, columns = k.shape[1:3]
        if rows == columns:
            return scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scaling, enable_gqa=heads != groups
            )
        outputs = []
        for start in range(0, rows, MASK_ROWS):
            block = q[:, :, start : start + MASK_ROWS]
            seen = columns - rows + start + block.shape[2]
            mask = self._mask(block.shape[2], seen, heads // groups, q)
            # The query heads that share a key head become rows beside each other: keys are read once.
            flat = block.reshape(1, groups, -1, size)
            out = scaled_dot_product_attention(
                flat, k[:, :, :seen], v[:, :, :seen], attn_mask=mask, scale=scaling
            )
            outputs.append(out.reshape(1, heads, -1, size))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def _mask(self, rows: int, columns: int, repeats: int, like: torch.Tensor) -> torch.Tensor:
        """The last rows of a causal mask, made once for all layers  # [repeats * rows, columns]."""
        mask = self._masks.get((rows, columns, repeats))
        if mask is None:
            infinite = torch.full((rows, columns), -torch.inf, dtype=like.dtype, device=like.device)
            mask = infinite.triu(columns - rows + 1).repeat(repeats, 1)
            self._masks[rows, columns, repeats] = mask
        return mask
