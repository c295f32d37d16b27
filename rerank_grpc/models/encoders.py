"""Cross-encoders and bi-encoders: a body, the rows that are pooled behind it, and a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rerank_grpc.models.base import ModelCard, PackedTokens

# The layers of a network, up to its last rows  # [num_tokens, hidden]
Body: TypeAlias = Callable[[PackedTokens], Tensor]
# From the last rows to  # [num_sequences, hidden] float32
Pool: TypeAlias = Callable[[Tensor, PackedTokens], Tensor]
# From those to logits  # [num_sequences, 1]
Head: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class CrossEncoder:
    """Scores sequences that hold query and document: the head over the pooled rows."""

    card: ModelCard
    body: Body
    pool: Pool
    head: Head

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> Tensor:
        return self.head(self.pool(self.body(packed), packed))


@dataclass(eq=False)
class BiEncoder:
    """Turns texts into vectors: what the head, if any, makes of the pooled rows, scaled to length 1."""

    card: ModelCard
    body: Body
    pool: Pool
    head: Head | None = None

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> Tensor:
        pooled = self.pool(self.body(packed), packed)
        return normalize(pooled if self.head is None else self.head(pooled))


def first_rows(rows: Tensor, packed: PackedTokens) -> Tensor:
    """Picks the row of each sequence's first token."""
    return rows.index_select(0, packed.layout.firsts).float()


def mean_rows(rows: Tensor, packed: PackedTokens) -> Tensor:
    """Averages the rows of each sequence."""
    return torch.stack([own.float().mean(dim=0) for own in rows.split(packed.layout.lengths)])


def max_rows(rows: Tensor, packed: PackedTokens) -> Tensor:
    """Takes the greatest value of each column among the rows of each sequence."""
    return torch.stack([own.float().amax(dim=0) for own in rows.split(packed.layout.lengths)])


def last_rows(rows: Tensor, packed: PackedTokens) -> Tensor:
    """Picks the row of each sequence's last token, and none of the prefixes'."""
    return rows.index_select(0, packed.layout.starts[1 + len(packed.prefixes) :] - 1).float()


def all_rows(rows: Tensor, packed: PackedTokens) -> Tensor:
    """Keeps the rows of a body that computes only those to be pooled."""
    return rows.float()


POOLS: Mapping[str, Pool] = {
    "first": first_rows,
    "mean": mean_rows,
    "max": max_rows,
    "last": last_rows,
}
