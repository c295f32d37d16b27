"""ModernBERT with one label, e.g. Alibaba-NLP/gte-reranker-modernbert-base."""

from __future__ import annotations

from typing import Any

import torch

from rerank_grpc.models.base import ModelCard, PackedTokens
from rerank_grpc.models.packed import first_rows, mean_rows

POOLS = {"cls": first_rows, "mean": mean_rows}


class ModernBert:
    """Scores pairs by a head over the first row or the mean of the rows, as its config says.

    Every third layer sees the whole sequence, the others a window of it: the
    attention function gets its size with each call.
    """

    def __init__(self, card: ModelCard, network: Any, dtype: torch.dtype) -> None:
        self.card = card
        self._pool = POOLS[network.config.classifier_pooling]
        self._head = network.head.float()
        self._classifier = network.classifier.float()
        self._body = round_weights(network.model, dtype)

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> torch.Tensor:
        """Scores each sequence; see base.Model.  # [num_sequences, 1]."""
        hidden = run_rotary(self._body, packed)
        logits: torch.Tensor = self._classifier(self._head(self._pool(hidden, packed)))
        return logits


def round_weights(body: Any, dtype: torch.dtype) -> Any:
    """Holds a body's weights in a type; not .to(dtype), which would round its rotary frequencies too."""
    for weight in body.parameters():
        weight.data = weight.data.to(dtype)
    return body


def run_rotary(body: Any, packed: PackedTokens) -> torch.Tensor:
    """Runs a body that has no segments and turns positions into rotations  # [num_tokens, hidden]."""
    output = body(
        input_ids=packed.input_ids[None],
        position_ids=packed.position_ids[None],
        sequence_lengths=packed.lengths,
        layout=packed.layout,
    )
    hidden: torch.Tensor = output.last_hidden_state[0]
    return hidden
