"""Loads a model: finds its checkpoint, checks it, and puts it on its device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.models import attention
from rerank_grpc.models.base import Model, ModelCard
from rerank_grpc.models.bert import Bert
from rerank_grpc.models.checkpoint import Checkpoint, open_checkpoint, read_json
from rerank_grpc.models.device import DTYPES, choose_device, choose_precision
from rerank_grpc.models.embedded import load_embedded
from rerank_grpc.models.network import read_network
from rerank_grpc.models.padded import Padded
from rerank_grpc.models.roberta import Roberta
from rerank_grpc.models.xlm_roberta import XlmRoberta
from rerank_grpc.types import Scoring

PACKED: Mapping[str, type[Bert] | type[Roberta]] = {
    "bert": Bert,
    "roberta": Roberta,
    "xlm-roberta": XlmRoberta,
}


def load_model(source: str, *, models_dir: Path, device: str, precision: str) -> Model:
    """Loads "embedded", a directory, or a hub id such as BAAI/bge-reranker-base.

    A hub id is first looked for as `models_dir`/NAME, then in the hub's cache,
    then fetched. The embedded model is always fp32. See device.py for what
    `device` and `precision` may be.

    Raises:
        ModelLoadError: whatever is wrong, in one line with the remedy.
    """
    place = choose_device(device)
    precision = choose_precision(precision, place)
    if source == "embedded":
        return load_embedded(place)
    checkpoint = open_checkpoint(source, models_dir=models_dir)
    check_classifier(checkpoint)
    family = PACKED.get(checkpoint.family)
    network = read_network(
        AutoModelForSequenceClassification, checkpoint, attention=attention.NAME if family else None
    )
    card = ModelCard(
        source=source,
        revision=checkpoint.revision,
        family=checkpoint.family,
        scoring=Scoring.SIGMOID,
        reads_pairs=True,
        max_tokens=max_tokens_of(checkpoint, network),
        device=str(place),
        precision=precision,
        attention=attention.BACKEND if family else "padded",
        tokenizer_file=checkpoint.tokenizer_file,
    )
    network.to(place)
    return (family or Padded)(card, network, DTYPES[precision])


def check_classifier(checkpoint: Checkpoint) -> None:
    """Raises ModelLoadError unless the config describes an encoder with one label."""
    config, where = checkpoint.config, f"{checkpoint.directory}/config.json"
    architectures = config.get("architectures") or ["none"]
    if not str(architectures[0]).endswith("ForSequenceClassification"):
        raise ModelLoadError(
            f"{where}: {architectures[0]} is not a sequence classification model: "
            "use a reranker (cross-encoder), or the embedded model"
        )
    labels = len(config.get("id2label") or {}) or int(config.get("num_labels", 2))
    if labels != 1:
        raise ModelLoadError(
            f"{where}: {labels} labels where a reranker has 1: use a checkpoint with one label"
        )
    if config.get("is_decoder") or config.get("is_encoder_decoder"):
        raise ModelLoadError(
            f"{where}: {checkpoint.family} is a decoder here, which is not supported: use an encoder"
        )


def max_tokens_of(checkpoint: Checkpoint, network: torch.nn.Module) -> int:
    """The longest sequence that both the table of positions and the tokenizer's configuration allow."""
    limits = [int(checkpoint.config.get("max_position_embeddings") or 512)]
    for name, module in network.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa's relatives reserve the rows up to the padding id's.
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - reserved)
    settings = checkpoint.directory / "tokenizer_config.json"
    declared: Any = read_json(settings).get("model_max_length") if settings.is_file() else None
    if isinstance(declared, int | float) and declared >= 1:
        limits.append(int(min(declared, 1 << 30)))
    return min(limits)
