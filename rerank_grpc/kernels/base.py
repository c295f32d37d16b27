"""The types that kernels and networks exchange: the layout of a pass, and the operations of a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import torch
from torch.nn.functional import layer_norm


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of a pass, on its device.

    The host knows only what `longest` and `lengths` say, so that nothing of
    the device need be waited for.

    Attributes:
        starts: where each part begins, and the end; a part may be empty,
            unless it is the last  # [num_parts + 1] int32
        longest: no part has more tokens.
        lengths: those of the parts; () where a captured pass must not depend on them.
        keys: the layout of the keys that the parts of a decoder see, where
            some continue a prefix; None where the parts see their own tokens.
        key_rows: for part after part, the rows of its keys among those that
            are kept and, behind them, the pass's own  # [num_keys] int32
    """

    starts: torch.Tensor
    longest: int
    lengths: tuple[int, ...] = ()
    keys: Layout | None = None
    key_rows: torch.Tensor | None = None

    @classmethod
    def of(cls, lengths: tuple[int, ...]) -> Layout:
        """The layout of parts on the CPU."""
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(starts, max(lengths, default=0), lengths)

    @property
    def firsts(self) -> torch.Tensor:
        """The first row of each part; 0 for empty parts at the beginning  # [num_parts]."""
        return self.starts[:-1]

    def lasts(self, skip: int) -> torch.Tensor:
        """The last row of each part after the first `skip`  # [num_parts - skip]."""
        return self.starts[1 + skip :] - 1

    def singles(self) -> Layout:
        """A layout of as many parts with one token each: the queries of the first rows."""
        count = len(self.starts) - 1
        places = torch.arange(count + 1, dtype=self.starts.dtype, device=self.starts.device)
        return Layout(places, 1, (1,) * len(self.lengths))


@dataclass(slots=True)
class KeysValues:
    """The keys and values of a prefix and of all prefixes before it.

    Attributes:
        tokens: the number of tokens, and so the position of the next one.
        layers: keys and values of each layer  # [1, key heads, tokens, size]
    """

    tokens: int
    layers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)


class Kernel(Protocol):
    """Attends within each part, by one call."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        queries: Layout,
        keys: Layout,
        *,
        causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
    ) -> torch.Tensor:
        """Query is  # [num_tokens, heads, size], key and value  # [num_keys, key heads, size].

        The queries of part i see the keys of part i: all of them, with `window`
        those that are nearer than that, with `causal` those up to their own
        position, where the last query is the last key's. Returns a tensor of
        the query's shape.
        """


class Linear(Protocol):
    """Multiplies rows by a weight, adds a bias, and perhaps applies GELU."""

    def __call__(self, rows: torch.Tensor, /) -> torch.Tensor:
        """[num_rows, inputs] → [num_rows, outputs], in the type of the rows."""


class AddNorm(Protocol):
    """Adds two matrices and normalizes the rows of the sum."""

    def __call__(self, rows: torch.Tensor, residual: torch.Tensor, /) -> torch.Tensor:
        """[num_rows, hidden] twice → [num_rows, hidden]."""


class Operations(Protocol):
    """Lays out the weights of a network for one device; they come in fp32, on the CPU."""

    def table(self, weight: torch.Tensor) -> torch.Tensor:
        """Lays out a table of embeddings, as a tensor of the caller's own."""

    def linear(self, weight: torch.Tensor, bias: torch.Tensor, *, gelu: bool = False) -> Linear:
        """Lays out a linear layer, with GELU behind it if `gelu`."""

    def norm(self, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> AddNorm:
        """Lays out a norm and the sum before it."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        queries: Layout,
        keys: Layout,
        heads: int,
    ) -> torch.Tensor:
        """Attends within each part, both ways; all are  # [num_rows, heads · size]."""


def plain_norm(weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> AddNorm:
    """Makes an AddNorm of torch's operations, which rounds the sum to the type of the rows."""
    shape = weight.shape

    def add_norm(rows: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return layer_norm(rows + residual, shape, weight, bias, epsilon)

    return add_norm
