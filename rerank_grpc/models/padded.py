"""Any other encoder with one label, e.g. DeBERTa-v2: its own code, over padded sequences.

Sequences of like length are padded together, so that a batch costs about what
its tokens do, as everything that queues and admits work takes for granted.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.models.base import ModelCard, PackedTokens

# Padding that costs about what one pass more would.
WORTHWHILE_PADDING = 256
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
        token_ids = packed.input_ids.long().split(
            packed.lengths
        )  # int32 on a GPU, which not every network takes
        types = packed.token_type_ids.long().split(packed.lengths)
        groups = by_length(packed.lengths)
        logits = torch.cat(
            [
                self._pass([token_ids[each] for each in group], [types[each] for each in group])
                for group in groups
            ]
        )
        order = [each for group in groups for each in group]
        return logits[sorted(range(len(order)), key=order.__getitem__)]

    def _pass(self, token_ids: Sequence[torch.Tensor], types: Sequence[torch.Tensor]) -> torch.Tensor:
        ids = pad_sequence(list(token_ids), batch_first=True, padding_value=self._pad)
        inputs = {
            "input_ids": ids,  # [num_sequences, longest]
            "attention_mask": pad_sequence([torch.ones_like(each) for each in token_ids], batch_first=True),
        }
        if self._reads_types:
            inputs["token_type_ids"] = pad_sequence(list(types), batch_first=True)
        logits: torch.Tensor = self._network(**inputs).logits
        return logits.float()


def by_length(lengths: Sequence[int], padding: int = WORTHWHILE_PADDING) -> list[list[int]]:
    """Groups indices of sequences, the longest first, so that no group is padded by more than `padding`."""
    groups: list[list[int]] = []
    longest = padded = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        padded += longest - lengths[index]
        if not groups or padded > padding:
            groups.append([])
            longest, padded = lengths[index], 0
        groups[-1].append(index)
    return groups


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
