"""BERT with one label, e.g. cross-encoder/ms-marco-MiniLM-L-6-v2."""

from __future__ import annotations

from typing import Any

import torch

from rerank_grpc.models.base import ModelCard, PackedTokens
from rerank_grpc.models.packed import first_rows, run_body


class Bert:
    """Scores pairs by BERT's pooler and classifier over the first token of each."""

    def __init__(self, card: ModelCard, network: Any, dtype: torch.dtype) -> None:
        self.card = card
        self._pooler = network.bert.pooler.float()
        self._classifier = network.classifier.float()
        network.bert.pooler = None  # it would pool row 0 of the pack, for nothing
        self._body = network.bert.to(dtype)

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> torch.Tensor:
        """Scores each sequence; see base.Model.  # [num_sequences, 1]."""
        hidden = run_body(
            self._body,
            packed,
            position_ids=packed.position_ids,
            token_type_ids=packed.token_type_ids,
        )
        first = first_rows(hidden, packed.lengths)
        logits: torch.Tensor = self._classifier(self._pooler(first[:, None]))
        return logits
