"""The types that kernels and networks exchange: the layout of a pass, and the operations of a device."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

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

    def lasts(self, prefixes: int) -> Tensor:
        """The last row of each part behind the first `prefixes` parts  # [num_parts - prefixes].

        It is 0 for empty parts at the beginning.
        """
        return (self.starts[1 + prefixes :] - 1).clamp_(min=0)

    def singles(self, prefixes: int = 0) -> Layout:
        """Lays out as many parts with one token each, the first `prefixes` of them with none."""
        places = torch.arange(len(self.starts), dtype=self.starts.dtype, device=self.starts.device)
        lengths = (0,) * prefixes + (1,) * (len(self.lengths) - prefixes)
        return Layout((places - prefixes).clamp_(min=0) if prefixes else places, 1, lengths)


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


Activation: TypeAlias = Literal["gelu", "gelu_tanh", "silu", "relu", "tanh"]


@dataclass(frozen=True, slots=True)
class Heads:
    """The attention heads of a layer; `count / groups` query heads share the keys and values of one."""

    count: int
    groups: int
    size: int
    scale: float
    window: int | None = None  # the distance from which on keys are not seen; None for all keys

    @property
    def width(self) -> int:
        """The columns of the queries."""
        return self.count * self.size

    @property
    def key_width(self) -> int:
        """The columns of the keys, and of the values."""
        return self.groups * self.size


class Angles(NamedTuple):
    """The angles by which the halves of each head are turned, a row for each token."""

    cosines: Tensor  # [num_rows, size / 2] float32
    sines: Tensor  # likewise

    def rows(self, picked: Tensor) -> Angles:
        """Picks some rows  # [num_picked] → [num_picked, size / 2] each."""
        return Angles(self.cosines.index_select(0, picked), self.sines.index_select(0, picked))


class Linear(Protocol):
    """Multiplies rows by a weight, adds a bias if it has one, and perhaps applies GELU."""

    def __call__(self, rows: Tensor, /) -> Tensor:
        """[num_rows, inputs] → [num_rows, outputs], in the type of the rows."""


class AddNorm(Protocol):
    """Adds two matrices and normalizes the rows of the sum."""

    def __call__(self, added: Tensor | None, residual: Tensor, /) -> tuple[Tensor, Tensor]:
        """[num_rows, hidden] twice → the normalized rows, and what the next sum adds to.

        The latter are the normalized rows themselves or, of a norm that keeps the sum,
        the sum. `residual` is the caller's own no more: it may be overwritten.
        """


class GatedProduct(Protocol):
    """Multiplies one half of the columns, activated, by the other half."""

    def __call__(self, rows: Tensor, /) -> Tensor:
        """[num_rows, 2 · width] → [num_rows, width]."""


class Rotate(Protocol):
    """Normalizes each head of each row, if it has a weight for that, and turns it."""

    def __call__(self, rows: Tensor, turns: Angles, /) -> Tensor:
        """[num_rows, heads · size] → the same; `rows` may be overwritten, and be a part of columns."""


class Causal(Protocol):
    """Attends causally in all layers of one pass, behind the prefixes that its parts continue."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, heads: Heads, *, last_only: bool
    ) -> Tensor:
        """[num_rows, heads · size] → the same; `key` and `value` are  # [num_tokens, groups · size].

        With `last_only` the queries are those of the last token of each part that is no prefix.
        The pass's prefixes get the keys and values that they leave for others.
        """


class Operations(Protocol):
    """Lays out the weights of a network for one device; they come on the CPU, vectors in fp32."""

    matrices: torch.dtype  # the type in which matrices come
    tables: torch.dtype  # that of tables, the largest weights, which are read as they are held
    level: str  # of the kernels in C, "" where none compute

    def table(self, weight: Tensor) -> Tensor:
        """Lays out a table of embeddings, as a tensor of the caller's own."""

    def linear(
        self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False, exact: bool = False
    ) -> Linear:
        """Lays out a linear layer, with GELU if `gelu`; an `exact` one is int8 with int8-all alone."""

    def norm(
        self, weight: Tensor, bias: Tensor | None, epsilon: float, *, rms: bool, keeps_sum: bool
    ) -> AddNorm:
        """Lays out a norm and the sum before it; `rms` divides by the root mean square alone."""

    def gate(self, activation: Activation) -> GatedProduct:
        """Makes the product of two halves of columns."""

    def turn(self, heads: int, weight: Tensor | None, epsilon: float) -> Rotate:
        """Makes the rotation of so many heads, behind an RMS norm of each if there is a weight  # [size]."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        queries: Layout,
        keys: Layout,
        heads: Heads,
        turns: tuple[Angles, Angles] | None = None,
    ) -> Tensor:
        """Attends within each part, both ways; query is  # [num_rows, heads · size], as is the result.

        Key and value are  # [num_keys, groups · size]. Query r of a part stands at the place of its key r.
        Queries and keys are turned by `turns` before.
        """

    def takes(self, heads: Heads) -> bool:
        """Whether one call of a kernel attends such heads for all parts of a pass."""

    def untaken(self, heads: Heads, columns: tuple[int, ...], outputs: tuple[int, ...]) -> list[str]:
        """Names what the kernels leave to torch's operations, slower, of a layer of this shape.

        `columns` are those of the rows that are normalized or gated, `outputs` those of the products.
        """

    def causal(
        self, contexts: tuple[KeysValues | None, ...], prefixes: tuple[KeysValues, ...], layout: Layout
    ) -> Causal:
        """Makes the attention of one causal pass."""
