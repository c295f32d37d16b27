"""Reads the outputs of a batch on the host: a number, a vector or a matrix for each sequence."""

from __future__ import annotations

from collections.abc import Sequence as ListOf

import numpy as np
import torch

from rerank_grpc.models.base import ModelCard
from rerank_grpc.sequence import TOKEN_BYTES, Output, Sequence


def count_rows(sequences: ListOf[Sequence], card: ModelCard) -> int:
    """Counts the rows that a pass gives for its sequences: one each, or in late interaction one a token."""
    if card.late is None:
        return len(sequences)
    return sum([len(sequence.ids) for sequence in sequences]) // TOKEN_BYTES


def outputs_of(rows: torch.Tensor, sequences: ListOf[Sequence], card: ModelCard) -> list[Output | None]:
    """Reads the output of each sequence; None where it is not finite.

    Vectors are rows of the same memory; matrices are copies, which keep nothing of the batch alive.
    """
    if card.late is not None:
        return _matrices(rows, sequences, card.skipped_ids)
    finite = torch.isfinite(rows).all(dim=1).tolist()
    values = rows[:, 0].tolist() if rows.shape[1] == 1 else list(rows.numpy())
    if all(finite):
        return values
    return [value if usable else None for value, usable in zip(values, finite, strict=True)]


def _matrices(
    rows: torch.Tensor, sequences: ListOf[Sequence], skipped: frozenset[int]
) -> list[Output | None]:
    """Reads a matrix for each sequence  # [tokens, size], for documents without the skipped tokens."""
    ids = np.frombuffer(b"".join([sequence.ids for sequence in sequences]), np.int32)
    kept = np.isin(ids, list(skipped), invert=True)
    finite = torch.isfinite(rows).all(dim=1).numpy()
    outputs: list[Output | None] = []
    end = 0
    for sequence in sequences:
        start, end = end, end + len(sequence)
        if sequence.is_query:
            kept[start:end] = True
        # A mask copies.
        usable = bool(finite[start:end].all())
        outputs.append(rows.numpy()[start:end][kept[start:end]] if usable else None)
    return outputs
