"""The types that kernels and networks exchange: the layout of a pass, and the operations of a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of a pass. Their places are on its device; the host reads their lengths without a wait.

    A part may be empty, unless it is the last. Where some parts of a decoder continue a prefix, or some parts
    do not see their last tokens, `keys` lays out the keys that the parts see, and `key_rows` lists their
    rows, part after part, among those that are kept and, behind them, the pass's own.
    """

    starts: Tensor  # where each part begins, and the end  # [num_parts + 1] int32
    longest: int  # no part has more tokens
    lengths: tuple[int, ...] = ()  # () where a captured pass must not depend on them
    keys: Layout | None = None  # None where the parts see their own tokens
    key_rows: Tensor | None = None  # [num_keys] int32

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device = CPU) -> Layout:
        """Lays out parts of these lengths, of which none continues a prefix."""
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)
        return cls(starts, max(lengths), lengths)

    def seen(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Layout]:
        """Picks the keys and the values that the parts see, and lays them out  # [num_tokens, width] each."""
        if self.keys is None or self.key_rows is None:
            return key, value, self
        return key.index_select(0, self.key_rows), value.index_select(0, self.key_rows), self.keys

    @property
    def firsts(self) -> Tensor:
        """The first row of each part; 0 for empty parts at the beginning  # [num_parts]."""
        return self.starts[:-1]

    def singles(self) -> Layout:
        """Lays out as many parts with one token each: the queries of the first rows."""
        places = torch.arange(len(self.starts), dtype=self.starts.dtype, device=self.starts.device)
        return Layout(places, 1, (1,) * len(self.lengths))


@dataclass(slots=True)
class KeysValues:
    """The keys and values of a prefix and of all prefixes before it."""

    tokens: int  # and so the position of the next one
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # [1, key heads, tokens, size] each


class Kernel(Protocol):
    """Attends within each part, by one call."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Layout,
        keys: Layout,
        *,
        causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """Query is  # [num_tokens, heads, size], key and value  # [num_keys, key heads, size].

        The queries of part i see the keys of part i: all of them, with `window`
        those that are nearer than that, with `causal` those up to their own
        position, where the last query is the last key's. Returns a tensor of
        the query's shape.
        """


class Linear(Protocol):
    """Multiplies rows by a weight, adds a bias, and perhaps applies GELU."""

    def __call__(self, rows: Tensor, /) -> Tensor:
        """[num_rows, inputs] → [num_rows, outputs], in the type of the rows."""


class AddNorm(Protocol):
    """Adds two matrices and normalizes the rows of the sum."""

    def __call__(self, rows: Tensor, residual: Tensor, /) -> Tensor:
        """[num_rows, hidden] twice → [num_rows, hidden]."""


class Operations(Protocol):
    """Lays out the weights of a network for one device; they come in fp32, on the CPU."""

    def table(self, weight: Tensor) -> Tensor:
        """Lays out a table of embeddings, as a tensor of the caller's own."""

    def linear(self, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Linear:
        """Lays out a linear layer, with GELU behind it if `gelu`."""

    def norm(self, weight: Tensor, bias: Tensor, epsilon: float) -> AddNorm:
        """Lays out a norm and the sum before it."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, queries: Layout, keys: Layout, heads: int
    ) -> Tensor:
        """Attends within each part, both ways; all are  # [num_rows, heads · size]."""


def plain_norm(weight: Tensor, bias: Tensor, epsilon: float) -> AddNorm:
    """Makes an AddNorm of torch's operations, which rounds the sum to the type of the rows."""
    shape = weight.shape
    return lambda rows, residual: layer_norm(rows + residual, shape, weight, bias, epsilon)
