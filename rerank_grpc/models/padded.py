"""Any other encoder with one label, e.g. DeBERTa-v2: its own code, over padded sequences."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from rerank_grpc.models.base import ModelCard, PackedTokens


class Padded:
    """Scores pairs with transformers' own forward pass; right, and slower than a packed family."""

    def __init__(self, card: ModelCard, network: Any, dtype: torch.dtype) -> None:
        self.card = card
        network.float()
        network.base_model.to(dtype)
        if dtype is not torch.float32:
            network.base_model.register_forward_hook(_float_output)
        self._network = network
        self._pad = int(network.config.pad_token_id)
        self._reads_types = "token_type_ids" in inspect.signature(network.forward).parameters

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> torch.Tensor:
        """Scores each sequence; see base.Model.  # [num_sequences, 1]."""
        lengths = packed.lengths
        ids = pad_sequence(list(packed.input_ids.split(lengths)), batch_first=True, padding_value=self._pad)
        inputs = {
            "input_ids": ids,  # [num_sequences, longest]
            "attention_mask": pad_sequence(
                list(torch.ones_like(packed.input_ids).split(lengths)), batch_first=True
            ),
        }
        if self._reads_types:
            inputs["token_type_ids"] = pad_sequence(
                list(packed.token_type_ids.split(lengths)), batch_first=True
            )
        logits: torch.Tensor = self._network(**inputs).logits
        return logits.float()


def _float_output(module: torch.nn.Module, args: object, output: Any) -> Any:
    """Makes the body's result float32, so that pooler and classifier compute in it."""
    for name, value in list(output.items()):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            output[name] = value.float()
    return output
