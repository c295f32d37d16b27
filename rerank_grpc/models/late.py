"""Models of late interaction: a body, and a vector for each of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rerank_grpc.evidence.cutting import original_tokenizer
from rerank_grpc.models.base import ModelCard, PackedTokens
from rerank_grpc.models.encoders import Body


@dataclass(eq=False)
class LateEncoder:
    """Turns texts into matrices, a vector for each token.

    `project` maps the last rows  # [num_tokens, hidden] float32
    to vectors of length 1        # [num_tokens, size].
    """

    card: ModelCard
    body: Body
    project: Callable[[Tensor], Tensor]

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> Tensor:
        return self.project(self.body(packed).float())


def ids_of(tokens: Iterable[str], tokenizer_file: Path) -> frozenset[int]:
    """Looks up tokens, and leaves out those that the vocabulary has not; raises ModelLoadError."""
    vocabulary = original_tokenizer(tokenizer_file)
    found = map(vocabulary.token_to_id, tokens)
    return frozenset(number for number in found if number is not None)
