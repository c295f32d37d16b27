"""Loads a model: builds the network that a checkpoint's evidence describes, on its device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.checkpoints.disk import read_json
from rerank_grpc.config.reading import provide
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Reading
from rerank_grpc.kernels import operations_for
from rerank_grpc.kernels.attention import Attention, choose_attention
from rerank_grpc.kernels.device import DTYPES
from rerank_grpc.kernels.native import cache_folder
from rerank_grpc.models.base import Kind, Model, ModelCard
from rerank_grpc.models.bert import BERT_FAMILIES, BertBody
from rerank_grpc.models.encoders import POOLS, AnswerHead, BiEncoder, CrossEncoder, Pool, all_rows
from rerank_grpc.models.evidence import Evidence, architecture_of, read_evidence
from rerank_grpc.models.hooked import HOOK, HookedBody
from rerank_grpc.models.padded import Padded
from rerank_grpc.models.prompts import PROMPTS, as_data
from rerank_grpc.models.weights import Take, load_parameters, read_network, read_outline

Builder: TypeAlias = Callable[[Checkpoint, ModelCard], Model]


def load_model(checkpoint: Checkpoint, device: torch.device, precision: str) -> Model:
    """Reads weights onto a device, in a precision of DTYPES; raises ModelLoadError, with the remedy."""
    evidence = read_evidence(checkpoint)
    build = _builder_for(evidence)
    if precision == "int8" and evidence.family not in BERT_FAMILIES:
        raise ModelLoadError(
            f"{checkpoint.directory}: precision 'int8' is for models of the families bert, roberta "
            "and xlm-roberta: use auto, bf16 or fp32"
        )
    if device.type == "cuda":
        keep_compiled_code()
    attention = Attention.PADDED
    if build is not _padded_cross_encoder:
        attention = choose_attention(device, precision, checkpoint.config)
    card = ModelCard(
        source=checkpoint.source,
        revision=checkpoint.revision,
        family=evidence.family,
        kind=evidence.kind,
        scoring=evidence.scoring,
        max_tokens=evidence.max_tokens or 0,
        device=str(device),
        precision=precision,
        attention=attention,
        tokenizer_file=checkpoint.tokenizer_file,
        pooling=evidence.pooling,
        accepts_instruction=bool(evidence.prompt and evidence.prompt.instruction),
        reading=Reading(prompt=as_data(evidence.prompt) if evidence.prompt else None),
        shares_prefixes=evidence.prompt is not None,
    )
    return build(checkpoint, card)


def keep_compiled_code() -> None:
    """Keeps the code of Inductor and Triton for the next start, unless the operator chose a folder."""
    for variable, name in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        provide(variable, str(cache_folder() / name))


def _builder_for(evidence: Evidence) -> Builder:
    """Chooses what builds a model: an own body, a hooked one, or else transformers' padded pass."""
    if evidence.kind is Kind.LANGUAGE_MODEL:
        return partial(_language_model, answers=evidence.answers)
    if evidence.kind is Kind.BI_ENCODER:
        return _bert_bi_encoder if evidence.family in BERT_FAMILIES else _hooked_bi_encoder
    if evidence.family in BERT_FAMILIES:
        return _bert_cross_encoder
    return _hooked_cross_encoder if evidence.family == "modernbert" else _padded_cross_encoder


def _bert_cross_encoder(checkpoint: Checkpoint, card: ModelCard) -> Model:
    network, take = read_outline(AutoModelForSequenceClassification, checkpoint)
    card = _limited(card, checkpoint, network)
    prefix = f"{network.base_model_prefix}."
    parts = {f"{prefix}pooler": network.base_model.pooler, "classifier": network.classifier}
    behind = [load_parameters(part, take, name) for name, part in parts.items() if part is not None]
    # Transformers' heads take the first row of  # [num_sequences, num_tokens, hidden]
    head = torch.nn.Sequential(torch.nn.Unflatten(1, (1, -1)), *behind).to(card.device).eval()
    return CrossEncoder(*_bert_body(card, network, take, prefix), head)


def _bert_bi_encoder(checkpoint: Checkpoint, card: ModelCard) -> Model:
    network, take = read_outline(AutoModel, checkpoint, add_pooling_layer=False)
    return BiEncoder(*_bert_body(_limited(card, checkpoint, network), network, take, ""))


def _bert_body(card: ModelCard, network: Any, take: Take, prefix: str) -> tuple[ModelCard, BertBody, Pool]:
    """Builds a body and the pool behind it; the card then says whether a pass of both can be captured."""
    operations = operations_for(torch.device(card.device), card.precision, card.attention)
    first_only = card.pooling == "first"
    body = BertBody(network.config, take, prefix, operations, first_only=first_only)
    pool = all_rows if first_only else POOLS[card.pooling]
    return replace(card, capturable=first_only and card.attention is not Attention.SDPA), body, pool


def _hooked_cross_encoder(checkpoint: Checkpoint, card: ModelCard) -> Model:
    network, card = _read_limited(AutoModelForSequenceClassification, checkpoint, card)
    head = torch.nn.Sequential(network.head.float(), network.classifier.float())
    body = HookedBody(network.model, card.precision, card.attention)
    return CrossEncoder(card, body, POOLS[card.pooling], head)


def _hooked_bi_encoder(checkpoint: Checkpoint, card: ModelCard) -> Model:
    network, card = _read_limited(AutoModel, checkpoint, card)
    return BiEncoder(card, HookedBody(network, card.precision, card.attention), POOLS[card.pooling])


def _language_model(checkpoint: Checkpoint, card: ModelCard, *, answers: tuple[int, ...]) -> Model:
    network, card = _read_limited(AutoModelForCausalLM, checkpoint, card)
    head = AnswerHead.of(network.lm_head.weight, answers)
    body = HookedBody(network.model, card.precision, card.attention, causal=True)
    card = replace(card, prefix_token_bytes=kept_token_bytes(checkpoint.config, DTYPES[card.precision]))
    return CrossEncoder(card, body, POOLS[card.pooling], head)


def _padded_cross_encoder(checkpoint: Checkpoint, card: ModelCard) -> Model:
    network, card = _read_limited(AutoModelForSequenceClassification, checkpoint, card, attention=None)
    return Padded(card, network)


def _read_limited(
    auto_class: Any, checkpoint: Checkpoint, card: ModelCard, attention: str | None = HOOK
) -> tuple[Any, ModelCard]:
    """Reads a network of transformers onto its device, and adds its limits to the card."""
    network = read_network(auto_class, checkpoint, attention=attention)
    card = _limited(card, checkpoint, network)
    return network.to(card.device), card


def _limited(card: ModelCard, checkpoint: Checkpoint, network: Any) -> ModelCard:
    """Adds the limits of the network: its vocabulary, checked, and its table of positions."""
    _check_vocabulary(checkpoint, network.get_input_embeddings().num_embeddings)
    positions = _positions_of(network)
    return replace(card, max_tokens=min(card.max_tokens or positions, positions))


def _check_vocabulary(checkpoint: Checkpoint, rows: int) -> None:
    """Raises ModelLoadError for ids beyond `rows`: one would fail a batch, and on a GPU end the process."""
    path = checkpoint.tokenizer_file
    data = read_json(path)
    try:
        vocabulary = data["model"]["vocab"]
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        added = [token["id"] for token in data.get("added_tokens") or () if not token["special"]]
        highest = max([*added, max(ids, default=0)])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{path}: not a tokenizer this version reads: copy it again") from error
    if highest >= rows:
        raise ModelLoadError(
            f"{path}: has token {highest}, but the weights know {rows} tokens: "
            "use the tokenizer that the model came with"
        )


def _positions_of(network: Any) -> int:
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
    if architecture_of(config) not in PROMPTS:
        return 0
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or config["hidden_size"] // heads)
    width = int(config.get("num_key_value_heads") or heads) * size
    return 2 * int(config["num_hidden_layers"]) * width * dtype.itemsize
