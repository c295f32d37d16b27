"""The evidence of a checkpoint's own files: its kind, pooling and limits, or the reason to refuse it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.checkpoints.disk import read_json
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.models.base import Kind
from rerank_grpc.models.bert import BERT_FAMILIES
from rerank_grpc.models.prompts import PROMPTS, Prompt, check_prompt
from rerank_grpc.types import Scoring

BI_ENCODERS = (*BERT_FAMILIES, "modernbert")
# The names of a pooling in a config.json, old and new, and ours.
POOLING_NAMES = {"cls_token": "first", "mean_tokens": "mean", "cls": "first", "mean": "mean"}


@dataclass(frozen=True, slots=True)
class Evidence:
    """The nature of a checkpoint by its files and, for its limit, by the catalogue."""

    kind: Kind
    family: str  # transformers' model_type
    scoring: Scoring
    pooling: str  # the rows that are read: "first", "mean" or "last"
    max_tokens: int | None  # None: the network's table of positions is the only limit
    prompt: Prompt | None = None  # that of a language model
    answers: tuple[int, ...] = ()  # the token ids of the prompt's answers


def read_evidence(checkpoint: Checkpoint) -> Evidence:
    """Reads the nature of a checkpoint.

    Raises ModelLoadError if it cannot be served, or if the catalogue describes another model.
    """
    prompt = PROMPTS.get(architecture_of(checkpoint.config))
    if prompt is not None:
        evidence = _language_model(checkpoint, prompt)
    elif _is_classifier(checkpoint) or not _modules(checkpoint):
        evidence = _cross_encoder(checkpoint)
    else:
        pooling, limit = _read_pooling(checkpoint), _max_tokens(checkpoint)
        evidence = Evidence(Kind.BI_ENCODER, checkpoint.family, Scoring.COSINE, pooling, limit)
    if checkpoint.known is not None:
        # To the catalogue a language model is a cross-encoder: it reads query and document together.
        kind = Kind.BI_ENCODER if evidence.kind is Kind.BI_ENCODER else Kind.CROSS_ENCODER
        checkpoint.known.check(
            kind=kind.value,
            family=checkpoint.family,
            pooling=evidence.pooling,
            directory=checkpoint.directory,
        )
    return evidence


def _language_model(checkpoint: Checkpoint, prompt: Prompt) -> Evidence:
    _check_decoder(checkpoint)
    answers = check_prompt(checkpoint.tokenizer_file, prompt)
    limit = _least(_max_tokens(checkpoint), prompt.max_tokens)
    return Evidence(Kind.LANGUAGE_MODEL, checkpoint.family, prompt.scoring, "last", limit, prompt, answers)


def _cross_encoder(checkpoint: Checkpoint) -> Evidence:
    _check_classifier(checkpoint)
    pooling = "first"
    if checkpoint.family == "modernbert":
        named = str(checkpoint.config.get("classifier_pooling", "cls"))
        pooling = POOLING_NAMES.get(named, named)  # transformers refuses another name
    return Evidence(Kind.CROSS_ENCODER, checkpoint.family, Scoring.SIGMOID, pooling, _max_tokens(checkpoint))


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that config.json names; "none" if it names none."""
    return str((config.get("architectures") or ["none"])[0])


def _is_classifier(checkpoint: Checkpoint) -> bool:
    return architecture_of(checkpoint.config).endswith("ForSequenceClassification")


def _modules(checkpoint: Checkpoint) -> list[str]:
    """Lists the modules that sentence-transformers would build; [] without a modules.json."""
    path = checkpoint.directory / "modules.json"
    if not path.is_file():
        return []
    try:
        return [str(module["type"]).rpartition(".")[2] for module in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelLoadError(f"{path}: cannot be read ({type(error).__name__}): copy it again") from error


def _check_classifier(checkpoint: Checkpoint) -> None:
    """Raises ModelLoadError unless the config describes an encoder with one label."""
    config, where = checkpoint.config, f"{checkpoint.directory}/config.json"
    if not _is_classifier(checkpoint):
        raise ModelLoadError(
            f"{where}: {architecture_of(config)} is not a sequence classification model: "
            "use a reranker (cross-encoder), or a bi-encoder in sentence-transformers' format"
        )
    extra = [module for module in _modules(checkpoint) if module != "Transformer"]
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


def _check_decoder(checkpoint: Checkpoint) -> None:
    """Raises ModelLoadError if a decoder attends in a way that the packed pass does not."""
    config, where = checkpoint.config, f"{checkpoint.directory}/config.json"
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    if kinds or config.get("use_sliding_window") or config.get("use_bidirectional_attention"):
        raise ModelLoadError(f"{where}: attention other than to all that stands before is not supported")
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, dict) else "?"
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise ModelLoadError(
            f"{where}: rotary embedding {str(kind)[:40]!r} makes scores depend on neighbours: not supported"
        )


def _read_pooling(checkpoint: Checkpoint) -> str:
    """Reads which rows a bi-encoder pools; raises ModelLoadError for modules and settings beyond that."""
    directory, modules = checkpoint.directory, _modules(checkpoint)
    if modules not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelLoadError(
            f"{directory}/modules.json: {', '.join(modules)}: this version knows a transformer with pooling"
        )
    if checkpoint.family not in BI_ENCODERS:
        raise ModelLoadError(
            f"{directory}: a bi-encoder of family {checkpoint.family} is not supported: "
            f"use one of {', '.join(BI_ENCODERS)}"
        )
    _check_settings(checkpoint)
    paths = sorted(directory.glob("*_Pooling/config.json"))
    if not paths:
        raise ModelLoadError(f"{directory}: no 1_Pooling/config.json: copy the whole checkpoint")
    chosen = _poolings(read_json(paths[0]))
    if len(chosen) != 1 or chosen[0] not in POOLING_NAMES:
        raise ModelLoadError(f"{paths[0]}: pools by {', '.join(chosen) or 'nothing'}, which is not supported")
    return POOLING_NAMES[chosen[0]]


def _poolings(config: Mapping[str, Any]) -> list[str]:
    """Lists the poolings that a pooling module's config.json chooses, in its old or new form."""
    if isinstance(config.get("pooling_mode"), str):
        return [config["pooling_mode"]]
    chosen = [name.removeprefix("pooling_mode_") for name, value in config.items() if value is True]
    return [name for name in chosen if name != "include_prompt"]


def _check_settings(checkpoint: Checkpoint) -> None:
    """Raises ModelLoadError if sentence-transformers would treat texts or vectors in another way."""
    path, reason = checkpoint.directory / "config_sentence_transformers.json", ""
    found = _settings(path)
    if found.get("default_prompt_name") or any((found.get("prompts") or {}).values()):
        reason = "a prompt before its texts"
    elif found.get("similarity_fn_name") not in (None, "cosine"):
        reason = f"the similarity {found['similarity_fn_name']!r}"
    else:
        path = checkpoint.directory / "sentence_bert_config.json"
        reason = "do_lower_case" if _settings(path).get("do_lower_case") else ""
    if reason:
        raise ModelLoadError(f"{path}: asks for {reason}, which this version does not do")


def _max_tokens(checkpoint: Checkpoint) -> int | None:
    """The lowest limit of the catalogue, of sentence-transformers and of the tokenizer."""
    known = checkpoint.known.max_tokens if checkpoint.known else 0
    cut: Any = _settings(checkpoint.directory / "sentence_bert_config.json").get("max_seq_length")
    declared: Any = _settings(checkpoint.directory / "tokenizer_config.json").get("model_max_length")
    if not isinstance(declared, int | float) or declared < 1:
        declared = 0
    return _least(known, cut if isinstance(cut, int) else 0, int(min(declared, 1 << 30)))


def _settings(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.is_file() else {}


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit), default=None)
