"""The limits of a network: its vocabulary, its positions, and the memory of a kept token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.checkpoints.disk import read_json
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.models.base import ModelCard


def limited(card: ModelCard, checkpoint: Checkpoint, vocabulary: int, positions: int) -> ModelCard:
    """Adds the limits of a network: the rows of its vocabulary, checked, and its positions."""
    _check_vocabulary(checkpoint, vocabulary)
    return replace(card, max_tokens=min(card.max_tokens or positions, positions))


def _check_vocabulary(checkpoint: Checkpoint, rows: int) -> None:
    """Raises ModelLoadError for ids beyond `rows`: one would fail a batch, and on a GPU end the process."""
    path = checkpoint.tokenizer_file
    data = read_json(path)
    try:
        vocabulary = data["model"]["vocab"]
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        added = [token["id"] for token in data.get("added_tokens") or () if not token["special"]]
        highest = int(max([*added, max(ids, default=0)]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{path}: not a tokenizer this version reads: copy it again") from error
    if highest >= rows:
        raise ModelLoadError(
            f"{path}: has token {highest}, but the weights know {rows} tokens: "
            "use the tokenizer that the model came with"
        )


def positions_of(network: Any) -> int:
    """The longest sequence that the table of positions allows."""
    limits = [int(getattr(network.config, "max_position_embeddings", None) or 512)]
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa's relatives reserve the rows up to the padding id's.
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - reserved)
    return min(limits)


def kept_token_bytes(config: Mapping[str, Any], dtype: torch.dtype) -> int:
    """Counts the bytes of one token's keys and values in all layers; 0 for a model that keeps no prefixes."""
    if "num_key_value_heads" not in config and not str(config.get("architectures")).endswith("CausalLM']"):
        return 0
    heads = int(config.get("num_attention_heads") or 0)
    size = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // max(1, heads))
    width = int(config.get("num_key_value_heads") or heads) * size
    return 2 * int(config.get("num_hidden_layers") or 0) * width * dtype.itemsize
