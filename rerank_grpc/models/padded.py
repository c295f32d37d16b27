"""Any other encoder with one label, e.g. DeBERTa-v2: its own code, over padded sequences."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.models.base import ModelCard, PackedTokens

# Lengths of the sequences that an unknown architecture is tried with.
_PROBES = (4, 32)


class Padded:
    """Scores pairs with transformers' own forward pass; right, and slower than a packed family."""

    def __init__(self, card: ModelCard, network: Any, dtype: torch.dtype) -> None:
        self.card = card
        self._network = network.float()
        self._pad = int(network.config.pad_token_id or 0)
        self._reads_types = "token_type_ids" in inspect.signature(network.forward).parameters
        check_plain_encoder(self, network)
        network.base_model.to(dtype)
        if dtype is not torch.float32:
            network.base_model.register_forward_hook(_float_output)

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> torch.Tensor:
        """Scores each sequence; see base.Model.  # [num_sequences, 1]."""
        lengths = packed.lengths
        token_ids = packed.input_ids.long()  # int32 on a GPU, which not every network takes
        ids = pad_sequence(list(token_ids.split(lengths)), batch_first=True, padding_value=self._pad)
        inputs = {
            "input_ids": ids,  # [num_sequences, longest]
            "attention_mask": pad_sequence(list(torch.ones_like(token_ids).split(lengths)), batch_first=True),
        }
        if self._reads_types:
            inputs["token_type_ids"] = pad_sequence(
                list(packed.token_type_ids.long().split(lengths)), batch_first=True
            )
        logits: torch.Tensor = self._network(**inputs).logits
        return logits.float()


def check_plain_encoder(model: Padded, network: Any) -> None:
    """Raises ModelLoadError unless an unknown architecture behaves as an encoder does.

    A decoder, which sees only what is to the left, expects a prompt that this
    path does not write; and a model whose score depends on the padding would
    score differently among other callers' documents.
    """
    device = next(network.parameters()).device
    ids = torch.arange(5, 5 + 36, device=device) % network.config.vocab_size
    places = torch.cat([torch.arange(length, device=device) for length in _PROBES])
    types = torch.zeros_like(ids)
    together = model.forward(PackedTokens(ids, places, types, _PROBES))
    alone = [
        model.forward(PackedTokens(own_ids, own_places, types[: len(own_ids)], (len(own_ids),)))
        for own_ids, own_places in zip(ids.split(_PROBES), places.split(_PROBES), strict=True)
    ]
    if not torch.allclose(together, torch.cat(alone), rtol=1e-3, atol=1e-3):
        raise ModelLoadError(
            f"{model.card.source}: {model.card.family} scores depend on the padding: not supported"
        )
    if reads_leftward_only(network, ids[:12]):
        raise ModelLoadError(
            f"{model.card.source}: {model.card.family} is a decoder, which needs a prompt that this version "
            "does not know: use an encoder reranker such as BAAI/bge-reranker-v2-m3"
        )


@torch.inference_mode()
def reads_leftward_only(network: Any, ids: torch.Tensor) -> bool:
    """Whether the first token's row stays the same when the last token changes."""
    other = ids.clone()
    other[-1] = ids[0]
    rows = [network.base_model(input_ids=each[None])[0][0, 0] for each in (ids, other)]
    return torch.equal(*rows)


def _float_output(module: torch.nn.Module, args: object, output: Any) -> Any:
    """Makes the body's result float32, so that pooler and classifier compute in it."""
    for name, value in list(output.items()):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            output[name] = value.float()
    return output
