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
    """Turns texts into vectors: the pooled rows, scaled to length 1."""

    card: ModelCard
    body: Body
    pool: Pool

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> Tensor:
        return normalize(self.pool(self.body(packed), packed))


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """Scores by the next token: a product with one row  # [hidden] float32."""

    row: Tensor

    @classmethod
    def of(cls, weight: Tensor, answers: tuple[int, ...]) -> AnswerHead:
        """Picks the rows of the answers' token ids out of the head of a language model.

        With two answers the logit is the first's less the second's: its sigmoid is the softmax over both.
        """
        rows = weight[list(answers)].float()  # [num_answers, hidden]
        return cls(rows[0] - rows[1] if len(rows) == 2 else rows[0].clone())

    def __call__(self, last: Tensor) -> Tensor:
        """[num_sequences, hidden] → [num_sequences, 1]."""
        return (last @ self.row)[:, None]


def first_rows(rows: Tensor, packed: PackedTokens) -> Tensor:
    """Picks the row of each sequence's first token."""
    return rows.index_select(0, packed.layout.firsts).float()


def mean_rows(rows: Tensor, packed: PackedTokens) -> Tensor:
    """Averages the rows of each sequence."""
    return torch.stack([own.float().mean(dim=0) for own in rows.split(packed.layout.lengths)])


def last_rows(rows: Tensor, packed: PackedTokens) -> Tensor:
    """Picks the row of each sequence's last token, and none of the prefixes'."""
    return rows.index_select(0, packed.layout.starts[1 + len(packed.prefixes) :] - 1).float()


def all_rows(rows: Tensor, packed: PackedTokens) -> Tensor:
    """Keeps the rows of a body that computes only those to be pooled."""
    return rows.float()


POOLS: Mapping[str, Pool] = {"first": first_rows, "mean": mean_rows, "last": last_rows}
