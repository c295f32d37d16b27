"""Makes a model of a checkpoint, on its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.checkpoints.disk import read_json
from rerank_grpc.checkpoints.sources import EMBEDDED
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.kernels.attention import SDPA, attention_for
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.models import hooked
from rerank_grpc.models.base import Model, ModelCard
from rerank_grpc.models.bert import Bert
from rerank_grpc.models.bi_encoder import SentenceEncoder, longest_of, module_kinds, pooling_of, read_body
from rerank_grpc.models.decoder import Decoder, check_decoder, prefix_token_bytes
from rerank_grpc.models.embedded import load_embedded
from rerank_grpc.models.gemma import Gemma
from rerank_grpc.models.modernbert import ModernBert
from rerank_grpc.models.network import read_network, read_outline
from rerank_grpc.models.padded import Padded
from rerank_grpc.models.prompt import check_prompt
from rerank_grpc.models.qwen3 import Qwen3
from rerank_grpc.models.roberta import Roberta
from rerank_grpc.models.xlm_roberta import XlmRoberta
from rerank_grpc.types import Scoring

# Those that encoder.py runs.
ENCODERS: Mapping[str, type[Bert] | type[Roberta]] = {
    "bert": Bert,
    "roberta": Roberta,
    "xlm-roberta": XlmRoberta,
}
# How the catalogue calls what a config names in transformers' words.
POOLINGS = {"cls": "first", "mean": "mean"}

# By architecture: a decoder's family alone does not say that it answers in words.
PROMPTED: Mapping[str, type[Decoder]] = {"Qwen3ForCausalLM": Qwen3, "GemmaForCausalLM": Gemma}


def load_model(checkpoint: Checkpoint, device: torch.device, precision: str) -> Model:
    """Reads a checkpoint's weights onto a device; raises ModelLoadError, in one line with the remedy.

    The embedded model is always fp32. `precision` is one of kernels.device.DTYPES.
    """
    if checkpoint.source == EMBEDDED:
        return load_embedded(checkpoint, device)
    prompted = PROMPTED.get(architecture_of(checkpoint.config))
    if prompted is not None:
        return load_prompted(prompted, checkpoint, device, precision)
    if is_classifier(checkpoint) or not module_kinds(checkpoint):
        return load_classifier(checkpoint, device, precision)
    return load_bi_encoder(checkpoint, device, precision)


def load_classifier(checkpoint: Checkpoint, place: torch.device, precision: str) -> Model:
    """Loads a cross-encoder with one label, or raises ModelLoadError."""
    check_classifier(checkpoint)
    auto, backend = AutoModelForSequenceClassification, attention_for(place, precision, checkpoint.config)
    if encoder := ENCODERS.get(checkpoint.family):
        network, take = read_outline(auto.from_config, auto, checkpoint)
        card = card_of(checkpoint, network, place, precision, Scoring.SIGMOID, "first", backend)
        return encoder(replace(card, capturable=backend != SDPA), network, take)
    check_quantizable(checkpoint, precision)
    if checkpoint.family == "modernbert":
        network = read_network(auto, checkpoint, attention=hooked.NAMES[backend])
        pooling = POOLINGS[network.config.classifier_pooling]
        card = card_of(checkpoint, network, place, precision, Scoring.SIGMOID, pooling, backend)
        return ModernBert(card, network.to(place), DTYPES[precision])
    network = read_network(auto, checkpoint, attention=None)
    card = card_of(checkpoint, network, place, precision, Scoring.SIGMOID, "first", "padded")
    return Padded(card, network.to(place), DTYPES[precision])


def check_quantizable(checkpoint: Checkpoint, precision: str) -> None:
    """Raises ModelLoadError for int8 and a model that encoder.py does not run."""
    if precision == "int8":
        raise ModelLoadError(
            f"{checkpoint.directory}: precision 'int8' is for cross-encoders of the families bert, roberta "
            "and xlm-roberta: use auto, bf16 or fp32"
        )


def load_bi_encoder(checkpoint: Checkpoint, place: torch.device, precision: str) -> Model:
    """Loads a model in sentence-transformers' format, or raises ModelLoadError."""
    pooling = pooling_of(checkpoint)
    check_quantizable(checkpoint, precision)
    backend = attention_for(place, precision, checkpoint.config)
    network = read_body(checkpoint, attention=hooked.NAMES[backend])
    card = card_of(checkpoint, network, place, precision, Scoring.COSINE, pooling, backend)
    return SentenceEncoder(card, network.to(place), DTYPES[precision], pooling)


def load_prompted(
    kind: type[Decoder], checkpoint: Checkpoint, place: torch.device, precision: str
) -> Decoder:
    """Loads a language model that answers whether a document is relevant, or raises ModelLoadError."""
    check_decoder(checkpoint)
    check_quantizable(checkpoint, precision)
    answers = check_prompt(checkpoint.tokenizer_file, kind.prompt)
    backend = attention_for(place, precision, checkpoint.config)
    network = read_network(AutoModelForCausalLM, checkpoint, attention=hooked.NAMES[backend])
    dtype = DTYPES[precision]
    card = card_of(checkpoint, network, place, precision, kind.scoring, "last", backend)
    card = replace(
        card,
        max_tokens=min(card.max_tokens, kind.max_tokens),
        accepts_instruction=bool(kind.prompt.instruction),
        prompt=kind.prompt,
        prefix_token_bytes=prefix_token_bytes(checkpoint.config, dtype),
    )
    return kind(card, network.to(place), dtype, answers)


def card_of(
    checkpoint: Checkpoint,
    network: Any,
    place: torch.device,
    precision: str,
    scoring: Scoring,
    pooling: str,
    backend: str,
) -> ModelCard:
    """Says what a model is; raises ModelLoadError if the catalogue knows it otherwise."""
    check_vocabulary(checkpoint, network)
    entry = checkpoint.known
    if entry is not None:
        entry.check(family=checkpoint.family, pooling=pooling, directory=checkpoint.directory)
    longest = [
        max_tokens_of(checkpoint, network),
        entry.max_tokens if entry else None,
        longest_of(checkpoint),
    ]
    return ModelCard(
        source=checkpoint.source,
        revision=checkpoint.revision,
        family=checkpoint.family,
        scoring=scoring,
        reads_pairs=scoring is not Scoring.COSINE,
        max_tokens=min(length for length in longest if length),
        device=str(place),
        precision=precision,
        attention=backend,
        tokenizer_file=checkpoint.tokenizer_file,
    )


def kept_token_bytes(config: Mapping[str, Any], dtype: torch.dtype) -> int:
    """Returns the bytes of one token in a kept prefix; 0 for a model that keeps none."""
    return prefix_token_bytes(config, dtype) if architecture_of(config) in PROMPTED else 0


def architecture_of(config: Mapping[str, Any]) -> str:
    """Returns the class that config.json names; "none" if it names none."""
    return str((config.get("architectures") or ["none"])[0])


def is_classifier(checkpoint: Checkpoint) -> bool:
    """Whether the config describes a network with a classifier."""
    return architecture_of(checkpoint.config).endswith("ForSequenceClassification")


def check_classifier(checkpoint: Checkpoint) -> None:
    """Raises ModelLoadError unless the config describes an encoder with one label."""
    config, where = checkpoint.config, f"{checkpoint.directory}/config.json"
    architecture = architecture_of(checkpoint.config)
    if not is_classifier(checkpoint):
        raise ModelLoadError(
            f"{where}: {architecture} is not a sequence classification model: "
            "use a reranker (cross-encoder), or a bi-encoder in sentence-transformers' format"
        )
    extra = [kind for kind in module_kinds(checkpoint) if kind != "Transformer"]
    if extra:
        raise ModelLoadError(
            f"{checkpoint.directory}/modules.json: {extra[0]} is a module of its own, "
            "which this version cannot score with"
        )
    labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    if labels != 1:
        raise ModelLoadError(
            f"{where}: {labels} labels where a reranker has 1: use a checkpoint with one label"
        )
    if config.get("is_decoder") or config.get("is_encoder_decoder"):
        raise ModelLoadError(
            f"{where}: {checkpoint.family} is a decoder here, which is not supported: use an encoder"
        )


def check_vocabulary(checkpoint: Checkpoint, network: Any) -> None:
    """Raises ModelLoadError if the tokenizer has ids that the network's table of embeddings has not.

    Such an id would raise in the middle of a batch, and on a GPU end the process.
    """
    path = checkpoint.tokenizer_file
    data = read_json(path)
    try:
        vocabulary = data["model"]["vocab"]
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        added = [token["id"] for token in data.get("added_tokens") or () if not token["special"]]
        highest = max([*added, max(ids, default=0)])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{path}: not a tokenizer this version reads: copy it again") from error
    rows = network.get_input_embeddings().num_embeddings
    if highest >= rows:
        raise ModelLoadError(
            f"{path}: has token {highest}, but the weights know {rows} tokens: "
            "use the tokenizer that the model came with"
        )


def max_tokens_of(checkpoint: Checkpoint, network: Any) -> int:
    """The longest sequence that both the table of positions and the tokenizer's configuration allow."""
    limits = [int(getattr(network.config, "max_position_embeddings", None) or 512)]
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
