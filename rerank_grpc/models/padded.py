"""Transformers' own passes over padded sequences: any other encoder, and the reference of `verify`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kernels.base import Layout
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.models.base import Kind, ModelCard, PackedTokens
from rerank_grpc.models.weights import SAFE, quiet

# The tokens of padding that cost about as much as one more pass.
WORTHWHILE_PADDING = 256


class Padded:
    """Scores pairs with transformers' own forward pass, e.g. DeBERTa-v2.

    Like lengths are padded together: scheduler and meter take a batch to cost about as much as its tokens.
    """

    def __init__(self, card: ModelCard, network: Any) -> None:
        self.card = card
        dtype = DTYPES[card.precision]
        self._network = network.float()
        self._pad = int(network.config.pad_token_id or 0)
        self._reads_types = "token_type_ids" in inspect.signature(network.forward).parameters
        check_plain_encoder(self, network)
        network.base_model.to(dtype)
        if dtype is not torch.float32:
            network.base_model.register_forward_hook(_float_output)

    @torch.inference_mode()
    def forward(self, packed: PackedTokens) -> Tensor:
        lengths = packed.layout.lengths
        # int32 on a GPU, which not every network takes
        ids, types = (each.long().split(lengths) for each in (packed.input_ids, packed.token_type_ids))
        groups = by_length(lengths)
        logits = [self._pass([ids[each] for each in own], [types[each] for each in own]) for own in groups]
        order = [index for group in groups for index in group]
        return torch.cat(logits)[sorted(range(len(order)), key=order.__getitem__)]

    def _pass(self, ids: list[Tensor], types: list[Tensor]) -> Tensor:
        inputs = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self._pad),
            "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
        }  # [num_sequences, longest] each
        if self._reads_types:
            inputs["token_type_ids"] = pad_sequence(types, batch_first=True)
        logits: Tensor = self._network(**inputs).logits
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

    A decoder sees only tokens to the left and expects a prompt that this path does not write. A model whose
    score depends on the padding would score differently among other callers' documents.
    """
    device = next(network.parameters()).device
    ids = torch.arange(5, 5 + 36, device=device) % network.config.vocab_size
    together = model.forward(_packed(ids, (4, 32)))
    alone = [model.forward(_packed(own, (len(own),))) for own in ids.split((4, 32))]
    if not torch.allclose(together, torch.cat(alone), rtol=1e-3, atol=1e-3):
        raise ModelLoadError(
            f"{model.card.source}: {model.card.family} scores depend on the padding: not supported"
        )
    if reads_leftward_only(network, ids[:12]):
        raise ModelLoadError(
            f"{model.card.source}: {model.card.family} is a decoder, which needs a prompt that this version "
            "does not know: use an encoder reranker such as BAAI/bge-reranker-v2-m3"
        )


def _packed(ids: Tensor, lengths: tuple[int, ...]) -> PackedTokens:
    positions = torch.cat([torch.arange(length, device=ids.device) for length in lengths])
    return PackedTokens(ids, positions, torch.zeros_like(ids), Layout.of(lengths, ids.device))


@torch.inference_mode()
def reads_leftward_only(network: Any, ids: Tensor) -> bool:
    """Whether the first token's row stays the same when the last token changes."""
    other = ids.clone()
    other[-1] = ids[0]
    rows = [network.base_model(input_ids=each[None])[0][0, 0] for each in (ids, other)]
    return torch.equal(*rows)


def _float_output(module: torch.nn.Module, args: object, output: Any) -> Any:
    """Makes the body's result float32, so that pooler and classifier compute in it."""
    for name, value in list(output.items()):
        if isinstance(value, Tensor) and value.is_floating_point():
            output[name] = value.float()
    return output


def reference_logits(card: ModelCard, query: str, documents: Sequence[str]) -> list[float]:
    """Scores documents as transformers does, in fp32: logits, or cosines for a bi-encoder.

    The packed pass shares nothing with this but the files.
    """
    pairs = card.kind is Kind.CROSS_ENCODER
    directory = card.tokenizer_file.parent
    auto = AutoModelForSequenceClassification if pairs else AutoModel
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(directory, **SAFE)
        network = auto.from_pretrained(directory, dtype=torch.float32, use_safetensors=True, **SAFE)
    network = network.eval().to(card.device)

    texts = ([query] * len(documents), list(documents)) if pairs else ([query, *documents],)
    batch = tokenizer(
        *texts, padding=True, truncation=True, max_length=card.max_tokens, return_tensors="pt"
    ).to(card.device)
    with torch.inference_mode():
        output = network(**batch)
        if pairs:
            return [float(logit) for logit in output.logits[:, 0]]
        hidden, mask = output.last_hidden_state, batch["attention_mask"]
        if card.pooling == "first":
            vectors = hidden[:, 0]
        else:
            vectors = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        vectors = normalize(vectors.float())
        return [float(cosine) for cosine in vectors[1:] @ vectors[0]]
