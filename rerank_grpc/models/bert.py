"""BERT with one label, e.g. cross-encoder/ms-marco-MiniLM-L-6-v2."""

from __future__ import annotations

from typing import Any

import torch

from rerank_grpc.kernels.cuda import operations_for
from rerank_grpc.models.base import ModelCard, PackedTokens
from rerank_grpc.models.encoder import Encoder, Take
from rerank_grpc.models.network import fill
from rerank_grpc.models.packed import run_body


class Bert:
    """Scores pairs by BERT's pooler and classifier over the first token of each.

    Network and `take` are what read_outline gives.
    """

    def __init__(self, card: ModelCard, network: Any, take: Take) -> None:
        self.card = card
        pooler = network.bert.pooler
        network.bert.pooler = None  # it would pool row 0 of the pack, for nothing
        self._pooler = fill(pooler, take, "bert.pooler").to(card.device)
        self._classifier = fill(network.classifier, take, "classifier").to(card.device)
        self._body = Encoder(network.config, take, "bert.", operations=operations_for(card), first_only=True)

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> torch.Tensor:
        """Scores each sequence; see base.Model.  # [num_sequences, 1]."""
        first = run_body(
            self._body,
            packed,
            position_ids=packed.position_ids,
            token_type_ids=packed.token_type_ids,
        )
        logits: torch.Tensor = self._classifier(self._pooler(first.float()[:, None]))
        return logits
