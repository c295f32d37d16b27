"""RoBERTa with one label, e.g. cross-encoder/stsb-roberta-base."""

from __future__ import annotations

from typing import Any

import torch

from rerank_grpc.models.base import ModelCard, PackedTokens
from rerank_grpc.models.packed import first_rows, run_body


class Roberta:
    """Scores pairs by the classification head over the first token of each."""

    def __init__(
        self,
        card: ModelCard,
        network: Any,
        dtype: torch.dtype,
    ) -> None:
        self.card = card
        self._classifier = network.classifier.float()
        self._body = network.roberta.to(dtype)
        # The rows up to the padding id's are reserved in the table of positions.
        self._first_position = int(network.roberta.embeddings.padding_idx) + 1

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> torch.Tensor:
        """Scores each sequence; see base.Model.  # [num_sequences, 1].

        Segments are all 0, whatever the tokenizer says: these models know one only.
        """
        hidden = run_body(
            self._body,
            packed,
            position_ids=packed.position_ids + self._first_position,
            token_type_ids=torch.zeros_like(packed.token_type_ids),
        )
        first = first_rows(hidden, packed.lengths)
        logits: torch.Tensor = self._classifier(first[:, None])
        return logits
