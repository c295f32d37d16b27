"""Causal attention by one call for all parts: what a part continues is copied before its own keys.

The other way, two passes merged by the log-sum-exp of their scores, reads a
prefix once instead of copying it for each part. It costs two kernels and a
merge for each layer, and its weights are rounded to 16 bits twice. A copy is
a hundredth of a pass and exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rerank_grpc.kernels.attention import Kernel
from rerank_grpc.kernels.base import Layout
from rerank_grpc.kernels.causal import KeysValues

Contexts = tuple[KeysValues | None, ...]


def kept_of(contexts: Contexts, prefixes: tuple[KeysValues, ...]) -> list[KeysValues]:
    """What parts continue that this pass does not compute, each once, in the order of its first use."""
    made = {id(prefix) for prefix in prefixes}
    kept = {id(each): each for each in contexts if each is not None and id(each) not in made}
    return list(kept.values())


def key_ranges(
    contexts: Contexts, prefixes: tuple[KeysValues, ...], lengths: Sequence[int]
) -> list[list[range]]:
    """For each part, where its keys lie among the kept ones (see kept_of) and the pass's own behind them."""
    places: dict[int, list[range]] = {}
    end = 0
    for kept in kept_of(contexts, prefixes):
        places[id(kept)] = [range(end, end + kept.tokens)]
        end += kept.tokens
    ranges = []
    for index, (context, length) in enumerate(zip(contexts, lengths, strict=True)):
        before = places[id(context)] if context is not None else []
        ranges.append([*before, range(end, end + length)])
        if index < len(prefixes):
            places[id(prefixes[index])] = ranges[-1]
        end += length
    return ranges


class GatheredParts:
    """How the parts of one pass hang together; see CausalParts, which attends part by part.

    `layout.keys` is made of key_ranges, or None if no part continues anything.
    """

    def __init__(
        self, contexts: Contexts, prefixes: tuple[KeysValues, ...], layout: Layout, kernel: Kernel
    ) -> None:
        assert layout.keys is not None or not any(contexts), "what parts continue would be left out"
        self._kept = kept_of(contexts, prefixes)
        self._prefixes = prefixes
        self._layout = layout
        self._kernel = kernel

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: tuple[int, ...],
        scaling: float | None,
    ) -> torch.Tensor:
        """See CausalParts.attend for the shapes."""
        q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))  # [num_tokens, heads, size]
        keys, seen = self._layout, lengths
        if self._layout.keys is not None:
            k, v = (self._gather(layer, place, own) for place, own in enumerate((k, v)))
            keys, seen = self._layout.keys, self._layout.keys.lengths
        self._leave(k, v, seen)
        return self._kernel(q, k, v, self._layout, keys, causal=True, scale=scaling)[None]

    def _gather(self, layer: int, place: int, own: torch.Tensor) -> torch.Tensor:
        """Lays out what each part sees, of keys or of values  # [num_keys, key heads, size]."""
        assert self._layout.key_rows is not None
        kept = [each.layers[layer][place][0].transpose(0, 1) for each in self._kept]
        return torch.cat([*kept, own]).index_select(0, self._layout.key_rows)

    def _leave(self, key: torch.Tensor, value: torch.Tensor, seen: tuple[int, ...]) -> None:
        """Gives the prefixes, which are the first parts, copies of what they and their contexts are."""
        end = 0
        for prefix, length in zip(self._prefixes, seen, strict=False):
            own = [each[end : end + length].clone().transpose(0, 1)[None] for each in (key, value)]
            prefix.layers.append((own[0], own[1]))
            end += length
