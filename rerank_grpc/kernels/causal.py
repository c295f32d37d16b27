"""Attention that one call over whole parts, both ways, cannot do: in a window, or causal behind a prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rerank_grpc.kernels.base import Heads, Kernel, KeysValues, Layout

Contexts: TypeAlias = tuple[KeysValues | None, ...]

# Query rows per block in a window. Larger blocks compute more scores that the mask discards.
WINDOW_ROWS = 256
# Query rows per block where a part continues a prefix or exceeds its window. A mask has this many rows,
# so long documents need no quadratic mask.
MASK_ROWS = 128


def attend_window(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
) -> Tensor:
    """Attends within one part, both ways  # [1, heads, num_tokens, size], with fewer heads for key and value.

    With `window`, token i sees token j where |i - j| < window: time grows with the length, not its square.
    Where there are fewer keys, those of the last tokens are missing; where there are fewer queries, those
    of the last tokens are; to see none gives zeros.
    """
    length, seen, grouped = query.shape[2], key.shape[2], query.shape[1] != key.shape[1]
    if window is None or max(length, seen) <= window:
        return scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=grouped)
    positions = torch.arange(max(length, seen), device=query.device)
    blocks = []
    for start in range(0, length, WINDOW_ROWS):
        end = min(start + WINDOW_ROWS, length)
        low, high = max(0, start - window + 1), min(seen, end + window - 1)
        near = (positions[start:end, None] - positions[None, low:high]).abs() < window  # [queries, keys]
        q, k, v = query[:, :, start:end], key[:, :, low:high], value[:, :, low:high]
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=near, scale=scale, enable_gqa=grouped)
        blocks.append(mixed)
    return torch.cat(blocks, dim=2)


class ByHeads:
    """Attends as an own body asks, whose heads lie side by side, by a pass that takes them one by one."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, heads: Heads, *, last_only: bool
    ) -> Tensor:
        """[num_rows, heads · size] → the same."""
        q, k, v = (rows.unflatten(1, (-1, heads.size)).transpose(0, 1)[None] for rows in (query, key, value))
        mixed = self.attend_causal(layer, q, k, v, heads.scale, heads.window, last_only=last_only)
        return mixed[0].flatten(1)

    def attend_causal(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        window: int | None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """[1, heads, num_rows, size], with fewer heads for key and value → [1, num_rows, heads, size]."""
        raise NotImplementedError


class CausalParts(ByHeads):
    """Attends causally, part by part, behind the prefix of `contexts` that each part continues, if any.

    The first parts leave their keys and values in `prefixes`, where later parts of the same pass find them.
    """

    def __init__(self, contexts: Contexts, prefixes: tuple[KeysValues, ...], layout: Layout) -> None:
        self._contexts = contexts
        self._prefixes = prefixes
        self._layout = layout
        self._masks: dict[tuple[int, int, int, int | None], Tensor] = {}

    def attend_causal(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        window: int | None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """[1, heads, num_rows, size], with fewer heads for key and value → [1, num_rows, heads, size].

        With `window`, token i sees token j where i - window < j <= i; a prefix's tokens count.
        """
        mixed = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        queries = self._layout.singles(len(self._prefixes)) if last_only else self._layout
        q = query.split(queries.lengths, dim=2)
        k, v = (each.split(self._layout.lengths, dim=2) for each in (key, value))
        parts = zip(self._contexts, q, k, v, mixed.split(queries.lengths, dim=1), strict=True)
        for index, (context, q, k, v, out) in enumerate(parts):
            if context is not None:
                kept_k, kept_v = context.layers[layer]
                k, v = _join(kept_k, k), _join(kept_v, v)
            if index < len(self._prefixes):
                # Copies: a view would keep the keys of the whole batch.
                self._prefixes[index].layers.append((k.clone(), v.clone()))
            self._attend_part(q, k, v, scale, window, out)
        return mixed

    def _attend_part(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None, out: Tensor
    ) -> None:
        """Attends from one part to its prefix and itself, into `out`  # [1, rows, heads, size]."""
        rows, columns = q.shape[2], k.shape[2]
        if window is not None and window >= columns:
            window = None
        if rows == columns and window is None:
            grouped = q.shape[1] != k.shape[1]
            mixed = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
            out.copy_(mixed.transpose(1, 2))
            return
        for start in range(0, rows, MASK_ROWS):
            block = q[:, :, start : start + MASK_ROWS]
            end = columns - rows + start + block.shape[2]
            begin = 0 if window is None else max(0, end - block.shape[2] - window + 1)
            keys, values = k[:, :, begin:end], v[:, :, begin:end]
            self._attend_block(block, keys, values, scale, window, out[0, start : start + MASK_ROWS])

    def _attend_block(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None, out: Tensor
    ) -> None:
        """Attends from some rows to the keys up to their own, into `out`  # [rows, heads, size]."""
        heads, rows, size = q.shape[1:]
        groups, columns = k.shape[1:3]
        repeats = heads // groups
        # The query heads that share a key head become rows beside each other: keys are read once.
        folded = q.reshape(1, groups, repeats * rows, size)
        mask = self._mask(rows, columns, repeats, window, q)
        mixed = scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=scale)
        target = out.unflatten(1, (groups, repeats))
        target.copy_(mixed[0].unflatten(1, (repeats, rows)).permute(2, 0, 1, 3))

    def _mask(self, rows: int, columns: int, repeats: int, window: int | None, like: Tensor) -> Tensor:
        """The last rows of a causal mask, made once for all layers  # [repeats * rows, columns]."""
        mask = self._masks.get((rows, columns, repeats, window))
        if mask is None:
            infinite = torch.full((rows, columns), -torch.inf, dtype=like.dtype, device=like.device)
            mask = infinite.triu(columns - rows + 1)
            if window is not None:
                mask += infinite.tril(columns - rows - window)
            mask = self._masks[rows, columns, repeats, window] = mask.repeat(repeats, 1)
        return mask


def _join(kept: Tensor, own: Tensor) -> Tensor:
    """Joins keys, or values, by blocks: tokens precede heads in memory  # [1, key heads, tokens, size]."""
    return torch.cat((kept.transpose(1, 2), own.transpose(1, 2)), dim=1).transpose(1, 2)


def kept_of(contexts: Contexts, prefixes: tuple[KeysValues, ...]) -> list[KeysValues]:
    """Lists the prefixes that this pass does not compute, each once, in the order of first use."""
    made = {id(prefix) for prefix in prefixes}
    kept = {id(each): each for each in contexts if each is not None and id(each) not in made}
    return list(kept.values())


def key_ranges(
    contexts: Contexts, prefixes: tuple[KeysValues, ...], lengths: Sequence[int]
) -> list[list[range]]:
    """For each part, where its keys lie among those of kept_of and, behind them, the pass's own."""
    found: dict[int, list[range]] = {}
    end = 0
    for kept in kept_of(contexts, prefixes):
        found[id(kept)] = [range(end, end + kept.tokens)]
        end += kept.tokens
    ranges = []
    for index, (context, length) in enumerate(zip(contexts, lengths, strict=True)):
        before = found[id(context)] if context is not None else []
        ranges.append([*before, range(end, end + length)])
        if index < len(prefixes):
            found[id(prefixes[index])] = ranges[-1]
        end += length
    return ranges


class GatheredParts(ByHeads):
    """Attends causally as CausalParts does, by one call of a kernel for all parts.

    `layout.keys` is made of key_ranges, or None if no part continues a prefix. The keys of a prefix are
    copied before those of each part: a hundredth of a pass, and exact. Two passes merged by the log-sum-exp
    of their scores would cost two kernels and a merge for each layer, and round the weights to 16 bits twice.
    """

    def __init__(
        self, contexts: Contexts, prefixes: tuple[KeysValues, ...], layout: Layout, kernel: Kernel
    ) -> None:
        assert layout.keys is not None or not any(contexts), "the prefixes would be left out"
        self._kept = kept_of(contexts, prefixes)
        self._prefixes = prefixes
        self._layout = layout
        self._kernel = kernel

    def attend_causal(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        window: int | None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """[1, heads, num_rows, size], with fewer heads for key and value → [1, num_rows, heads, size]."""
        q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))  # [num_tokens, heads, size]
        keys, seen = self._layout, self._layout.lengths
        if self._layout.keys is not None:
            k, v = self._gather(layer, 0, k), self._gather(layer, 1, v)
            keys, seen = self._layout.keys, self._layout.keys.lengths
        self._leave(k, v, seen)
        queries = self._layout.singles(len(self._prefixes)) if last_only else self._layout
        return self._kernel(q, k, v, queries, keys, causal=True, window=window, scale=scale)[None]

    def _gather(self, layer: int, index: int, own: Tensor) -> Tensor:
        """Lays out the keys, or the values, that each part sees  # [num_keys, key heads, size]."""
        assert self._layout.key_rows is not None
        kept = [each.layers[layer][index][0].transpose(0, 1) for each in self._kept]
        return torch.cat([*kept, own]).index_select(0, self._layout.key_rows)

    def _leave(self, key: Tensor, value: Tensor, seen: tuple[int, ...]) -> None:
        """Gives the prefixes, which are the first parts, copies of their keys and values."""
        end = 0
        for prefix, length in zip(self._prefixes, seen, strict=False):
            k, v = (each[end : end + length].clone().transpose(0, 1)[None] for each in (key, value))
            prefix.layers.append((k, v))
            end += length


def causal_parts(
    contexts: Contexts, prefixes: tuple[KeysValues, ...], layout: Layout, kernel: Kernel | None
) -> CausalParts | GatheredParts:
    """Chooses how a causal pass attends: by one call if there is a kernel, else part by part."""
    contexts = contexts or (None,) * len(layout.lengths)
    if kernel is None:
        return CausalParts(contexts, prefixes, layout)
    return GatheredParts(contexts, prefixes, layout, kernel)
