"""Cross-encoders and bi-encoders: a body, the rows that are pooled behind it, and a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch.nn.functional import normalize

from rerank_grpc.models.base import ModelCard, PackedTokens


class Body(Protocol):
    """The layers of a network, up to its last rows."""

    def __call__(self, packed: PackedTokens, /) -> torch.Tensor:
        """Runs one pass over all sequences  # [num_tokens, hidden]."""


# From the last rows to  # [num_sequences, hidden] float32
Pool: TypeAlias = Callable[[torch.Tensor, PackedTokens], torch.Tensor]
# From those to logits  # [num_sequences, 1]
Head: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(eq=False)
class CrossEncoder:
    """Scores sequences that hold query and document: the head over the pooled rows."""

    card: ModelCard
    body: Body
    pool: Pool
    head: Head

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> torch.Tensor:
        return self.head(self.pool(self.body(packed), packed))


@dataclass(eq=False)
class BiEncoder:
    """Turns texts into vectors: the pooled rows, scaled to length 1."""

    card: ModelCard
    body: Body
    pool: Pool

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> torch.Tensor:
        return normalize(self.pool(self.body(packed), packed))


def first_rows(rows: torch.Tensor, packed: PackedTokens) -> torch.Tensor:
    """Picks the row of each sequence's first token."""
    return rows.index_select(0, packed.layout_of_parts().firsts).float()


def mean_rows(rows: torch.Tensor, packed: PackedTokens) -> torch.Tensor:
    """Averages the rows of each sequence."""
    return torch.stack([own.float().mean(dim=0) for own in rows.split(packed.lengths)])


def last_rows(rows: torch.Tensor, packed: PackedTokens) -> torch.Tensor:
    """Picks the row of each sequence's last token, and none of the prefixes'."""
    return rows.index_select(0, packed.layout_of_parts().lasts(len(packed.prefixes))).float()


def all_rows(rows: torch.Tensor, packed: PackedTokens) -> torch.Tensor:
    """Keeps the rows of a body that computes only those to be pooled."""
    return rows.float()


POOLS: Mapping[str, Pool] = {"first": first_rows, "mean": mean_rows, "last": last_rows}
