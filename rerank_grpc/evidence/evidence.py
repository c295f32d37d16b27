"""The order of evidence: a checkpoint's own files first, then the catalogue; without either, a refusal."""

from __future__ import annotations

from dataclasses import replace

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.cross_encoder import is_classifier, read_cross_encoder
from rerank_grpc.evidence.facts import Evidence, Kind, Reading
from rerank_grpc.evidence.heads import POOLED, pooling_of, read_chain
from rerank_grpc.evidence.late import is_late, read_late
from rerank_grpc.evidence.modules import SETTINGS, TRANSFORMER, SavedModel, max_tokens, read_saved_model
from rerank_grpc.types import Scoring


def read_evidence(checkpoint: Checkpoint) -> Evidence:
    """Reads the nature of a checkpoint.

    Raises ModelLoadError if the files contradict themselves or do not say it, if this version cannot do what
    they say, or if the catalogue describes another model.
    """
    _check_whole(checkpoint)
    saved = read_saved_model(checkpoint.directory)
    if is_late(checkpoint, saved):
        evidence = read_late(checkpoint, saved)
    elif _is_bi_encoder(checkpoint, saved):
        evidence = _bi_encoder(checkpoint, saved)
    else:
        # As sentence-transformers, which goes by a classifier's own files where another class saved them.
        foreign = saved.model_type == "SentenceTransformer" and not saved.modules
        evidence = read_cross_encoder(checkpoint, SavedModel(saved.directory) if foreign else saved)
    if (known := checkpoint.known) is not None:
        evidence = replace(evidence, scale=known.scale, offset=known.offset)
        known.check(
            kind=evidence.kind.value,
            family=evidence.family,
            pooling=evidence.pooling,
            directory=checkpoint.directory,
        )
    return evidence


def _check_whole(checkpoint: Checkpoint) -> None:
    """Raises ModelLoadError if the weights alone are not the model."""
    directory, config = checkpoint.directory, checkpoint.config
    if (directory / "adapter_config.json").is_file():
        raise ModelLoadError(
            f"{directory}/adapter_config.json: the weights are those of an adapter's base: "
            "merge the adapter into them and save the result"
        )
    relative = config.get("position_embedding_type") or "absolute"
    if relative != "absolute":
        raise ModelLoadError(
            f"{directory}/config.json: position_embedding_type {str(relative)[:40]!r} is not supported: "
            "use another checkpoint"
        )


def _is_bi_encoder(checkpoint: Checkpoint, saved: SavedModel) -> bool:
    """Whether a directory holds a bi-encoder; raises ModelLoadError for a kind that is none of ours."""
    if saved.model_type == "SparseEncoder":
        raise ModelLoadError(
            f"{saved.directory}/{SETTINGS}: a SparseEncoder is no reranker: use another model"
        )
    if saved.model_type not in ("", "CrossEncoder", "SentenceTransformer"):
        raise ModelLoadError(
            f"{saved.directory}/{SETTINGS}: model_type {saved.model_type[:40]!r} is unknown to this version"
        )
    if saved.model_type == "SentenceTransformer" and saved.of_type("LogitScore"):
        raise ModelLoadError(
            f"{saved.directory}/modules.json: LogitScore is a CrossEncoder's, and {SETTINGS} names none: "
            "copy the whole checkpoint"
        )
    # A classifier's only module is the transformer; older releases saved it without a model_type.
    return saved.model_type == "SentenceTransformer" and (
        bool(saved.modules) or not is_classifier(checkpoint)
    )


def _bi_encoder(checkpoint: Checkpoint, saved: SavedModel) -> Evidence:
    _check_texts(saved)
    _check_vectors(saved)
    prompts = saved.settings.get("prompts") or {}
    query = prompts.get("query") or ""
    document = (
        next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), "") or ""
    )
    if saved.default_prompt and not (query or document):
        text = "asks for a prompt before its texts, and says not whether queries or documents have it"
        raise ModelLoadError(f"{saved.directory}/{SETTINGS}: {text}: use another checkpoint")
    return Evidence(
        kind=Kind.BI_ENCODER,
        family=checkpoint.family,
        scoring=Scoring.COSINE,
        head=read_chain(saved.modules[1:], result=POOLED),
        pooling=pooling_of(saved.modules[0]),
        reading=Reading(
            lower_case=bool(saved.transformer.get("do_lower_case")),
            query_prefix=str(query),
            document_prefix=str(document),
        ),
        max_tokens=max_tokens(checkpoint, saved),
        activation="cosine",
    )


def _check_texts(saved: SavedModel) -> None:
    """Raises ModelLoadError unless a bi-encoder reads plain texts, in one way and up to one length."""
    path, transformer = saved.directory / TRANSFORMER, saved.transformer
    task = transformer.get("transformer_task", "feature-extraction")
    if task != "feature-extraction" or "message" in (transformer.get("modality_config") or {}):
        text = f"{path}: asks for {str(task)[:40]!r} by messages of a chat"
        raise ModelLoadError(f"{text}: a bi-encoder that this version cannot ask; use another checkpoint")
    for name in ("query_length", "document_length", "query_expansion"):
        if transformer.get(name) is not None:
            text = f"{name} is for late interaction, which modules.json does not describe"
            raise ModelLoadError(f"{path}: {text}: use another checkpoint")


def _check_vectors(saved: SavedModel) -> None:
    """Raises ModelLoadError unless whole vectors of pooled rows are compared by their cosine."""
    types = [module.type for module in saved.modules]
    if types[:1] != ["Pooling"] or {*types[1:]} - {"Dense", "LayerNorm", "Normalize"}:
        raise ModelLoadError(
            f"{saved.directory}/modules.json: {', '.join(['Transformer', *types])}: "
            "this version knows a transformer with pooling, dense layers and norms"
        )
    if saved.modules[-1].config.get("module_output_name") == "scores":
        text = f"makes scores, as no SentenceTransformer does, and {SETTINGS} names no CrossEncoder"
        raise ModelLoadError(f"{saved.directory}/modules.json: {text}: copy the whole checkpoint")
    path, similarity = saved.directory / SETTINGS, saved.settings.get("similarity_fn_name")
    if similarity not in (None, "cosine"):
        text = f"asks for the similarity {str(similarity)[:40]!r}, which this version does not do"
        raise ModelLoadError(f"{path}: {text}")
    if saved.settings.get("truncate_dim") is not None:
        text = "truncate_dim cuts vectors, which this version does not do"
        raise ModelLoadError(f"{path}: {text}: use another checkpoint")
