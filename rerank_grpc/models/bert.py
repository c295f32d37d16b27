"""BERT with one label, e.g. cross-encoder/ms-marco-MiniLM-L-6-v2."""

from __future__ import annotations

from typing import Any

import torch

from rerank_grpc.models.base import ModelCard, PackedTokens
from rerank_grpc.models.encoder import Encoder, Take
from rerank_grpc.models.network import fill
from rerank_grpc.models.packed import run_first_rows


class Bert:
    """Scores pairs by BERT's pooler and classifier over the first token of each.

    With `take` (see read_outline) the layers run in encoder.py, else in the network.
    """

    def __init__(self, card: ModelCard, network: Any, dtype: torch.dtype, take: Take | None = None) -> None:
        self.card = card
        pooler = network.bert.pooler
        network.bert.pooler = None  # it would pool row 0 of the pack, for nothing
        if take is None:
            self._pooler = pooler.float()
            self._classifier = network.classifier.float()
            self._body = network.bert.to(dtype)
        else:
            self._pooler = fill(pooler, take, "bert.pooler")
            self._classifier = fill(network.classifier, take, "classifier")
            self._body = Encoder(network.config, take, "bert.", precision=card.precision, first_only=True)

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> torch.Tensor:
        """Scores each sequence; see base.Model.  # [num_sequences, 1]."""
        first = run_first_rows(
            self._body,
            packed,
            position_ids=packed.position_ids,
            token_type_ids=packed.token_type_ids,
        )
        logits: torch.Tensor = self._classifier(self._pooler(first[:, None]))
        return logits
