"""Language models: one row of the head, at the last position, and the memory of a prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """Scores by the next token: a product with one row  # [hidden] float32."""

    row: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor, answers: tuple[int, ...]) -> AnswerHead:
        """Picks the rows of the answers' token ids out of the head of a language model.

        With two answers the logit is the first's less the second's, so that its
        sigmoid is the softmax over both.
        """
        rows = weight[list(answers)].float()  # [num_answers, hidden]
        return cls(rows[0] - rows[1] if len(rows) == 2 else rows[0].clone())

    def __call__(self, last: torch.Tensor) -> torch.Tensor:
        """[num_sequences, hidden] → [num_sequences, 1]."""
        return (last @ self.row)[:, None]


def prefix_token_bytes(config: Mapping[str, Any], dtype: torch.dtype) -> int:
    """Counts the bytes of one token's keys and values in all layers; `config` is config.json's."""
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or config["hidden_size"] // heads)
    width = int(config.get("num_key_value_heads") or heads) * size
    return 2 * int(config["num_hidden_layers"]) * width * dtype.itemsize
