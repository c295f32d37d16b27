"""RoBERTa with one label, e.g. cross-encoder/stsb-roberta-base."""

from __future__ import annotations

from typing import Any

import torch

from rerank_grpc.kernels.cuda import operations_for
from rerank_grpc.models.base import ModelCard, PackedTokens
from rerank_grpc.models.encoder import Encoder, Take
from rerank_grpc.models.network import fill
from rerank_grpc.models.packed import run_body


class Roberta:
    """Scores pairs by the classification head over the first token of each.

    Network and `take` are what read_outline gives.
    """

    def __init__(self, card: ModelCard, network: Any, take: Take) -> None:
        self.card = card
        # The rows up to the padding id's are reserved in the table of positions.
        self._first_position = int(network.roberta.embeddings.padding_idx) + 1
        self._classifier = fill(network.classifier, take, "classifier").to(card.device)
        self._body = Encoder(
            network.config, take, "roberta.", operations=operations_for(card), first_only=True
        )

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> torch.Tensor:
        """Scores each sequence; see base.Model.  # [num_sequences, 1].

        Segments are all 0, whatever the tokenizer says: these models know one only.
        """
        first = run_body(
            self._body,
            packed,
            position_ids=packed.position_ids + self._first_position,
            token_type_ids=torch.zeros_like(packed.token_type_ids),
        )
        logits: torch.Tensor = self._classifier(first.float()[:, None])
        return logits
