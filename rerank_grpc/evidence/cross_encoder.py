"""Cross-encoders: head and prompt by sentence-transformers' files, else config.json, else the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.cutting import original_tokenizer
from rerank_grpc.evidence.facts import Answers, Classifier, Evidence, Head, Kind, Module, Reading
from rerank_grpc.evidence.heads import activation_of, find_answers, pooling_of, read_chain, stated_answer
from rerank_grpc.evidence.modules import SETTINGS, SavedModel, max_tokens
from rerank_grpc.evidence.prompt import CATALOGUE, Prompt, parse_answers, parse_prompt
from rerank_grpc.evidence.template import TemplateSettings, find_templates, read_template
from rerank_grpc.types import Scoring

# The names of a pooling in a config.json, old and new, and ours.
CLASSIFIER_POOLINGS = {"cls": "first", "mean": "mean"}


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that config.json names; "none" if it names none."""
    return str((config.get("architectures") or ["none"])[0])


def read_cross_encoder(checkpoint: Checkpoint, saved: SavedModel) -> Evidence:
    """Reads how a model scores pairs; raises ModelLoadError if its files do not say it."""
    prompt: Prompt | None = None
    if saved.has_modules:
        head, pooling = _saved_head(checkpoint, saved)
        templated = "message" in (saved.transformer.get("modality_config") or {})
    else:
        head, pooling, prompt = _bare_head(checkpoint, saved)
        # Without a word of its own, sentence-transformers takes the chat template wherever there is one.
        templated = prompt is None and bool(find_templates(checkpoint.directory))
    default = saved.default_prompt if saved.has_modules else ""
    if templated:
        prompt = read_template(checkpoint.directory, settings=_template_settings(checkpoint, saved, default))
    if isinstance(head, Classifier) and "num_key_value_heads" in checkpoint.config:
        _check_end(checkpoint, prompt)
    activation = activation_of(checkpoint, saved)
    return Evidence(
        kind=Kind.CROSS_ENCODER,
        family=checkpoint.family,
        scoring=_scoring(activation, head),
        head=head,
        pooling=pooling,
        reading=Reading(
            lower_case=bool(saved.transformer.get("do_lower_case")),
            query_prefix="" if prompt else default,
            prompt=prompt,
        ),
        max_tokens=max_tokens(checkpoint, saved),
        activation=activation,
    )


def _check_end(checkpoint: Checkpoint, prompt: Prompt | None) -> None:
    """Raises ModelLoadError if sequences end with the token that pads.

    A classifier of transformers reads the last token that is another, which would be the one before.
    """
    tokenizer = original_tokenizer(checkpoint.tokenizer_file)
    pad, ids = checkpoint.config.get("pad_token_id"), tokenizer.encode("a", "b").ids
    if prompt is not None:
        last = prompt.chosen("")[-1][-1]
        ids = tokenizer.encode(last if isinstance(last, str) else "a", add_special_tokens=False).ids
    if ids and ids[-1] == pad:
        raise ModelLoadError(
            f"{checkpoint.directory}/config.json: pad_token_id {pad} is the token that ends each sequence: "
            "name the one that the tokenizer pads with"
        )


def _scoring(activation: str, head: Head) -> Scoring:
    if activation == "tanh":
        return Scoring.TANH
    # The logit of two answers is a difference, whose sigmoid is their softmax.
    two = isinstance(head, Answers) and head.false is not None
    return Scoring.SOFTMAX if two else Scoring.SIGMOID


def _saved_head(checkpoint: Checkpoint, saved: SavedModel) -> tuple[Head, str]:
    """Reads the head that modules.json describes, and which rows it reads."""
    task, path = str(saved.transformer.get("transformer_task", "feature-extraction")), saved.directory
    types = [module.type for module in saved.modules]
    if is_classifier(checkpoint) and not types:
        task = "sequence-classification"
    match task, types:
        case "sequence-classification", []:
            _check_classifier(checkpoint)
            pairs = "text" in (saved.transformer.get("modality_config") or {})
            return Classifier(reads_pairs=pairs), _classifier_pooling(checkpoint)
        case "text-generation", ["LogitScore"]:
            return _logit_score(checkpoint, saved.modules[0]), "last"
        case "feature-extraction", ["Pooling", *others] if others and others[-1] == "Dense":
            return read_chain(saved.modules[1:], result="scores"), pooling_of(saved.modules[0])
    listed = ", ".join(["Transformer", *types])
    raise ModelLoadError(
        f"{path}/modules.json: {listed} ({task[:40]}) is a reranker that this version cannot score: "
        "use another checkpoint"
    )


def _logit_score(checkpoint: Checkpoint, module: Module) -> Answers:
    true, false = module.config.get("true_token_id"), module.config.get("false_token_id")
    where = module.directory / "config.json"
    if true == false:
        raise ModelLoadError(f"{where}: compares token {str(true)[:40]} with itself: copy it again")
    return Answers(
        stated_answer(checkpoint, true, "true_token_id", where),
        None if false is None else stated_answer(checkpoint, false, "false_token_id", where),
    )


def _bare_head(checkpoint: Checkpoint, saved: SavedModel) -> tuple[Head, str, Prompt | None]:
    """Reads the head of a directory without modules.json, and the prompt that the catalogue has for it."""
    directory, config = checkpoint.directory, checkpoint.config
    if saved.settings.get("default_prompt_name") or saved.settings.get("model_type") == "CrossEncoder":
        raise ModelLoadError(
            f"{directory}: {SETTINGS} is there and modules.json is not: copy the whole checkpoint"
        )
    architecture = architecture_of(config)
    if is_classifier(checkpoint):
        _check_classifier(checkpoint)
        return Classifier(), _classifier_pooling(checkpoint), None
    if not architecture.endswith("ForCausalLM"):
        raise ModelLoadError(
            f"{directory}/config.json: {architecture[:60]} is not a sequence classification model: "
            "use a reranker (cross-encoder), or a bi-encoder in sentence-transformers' format"
        )
    known = checkpoint.known
    if known is None or not known.prompt:
        raise ModelLoadError(
            f"{directory}: {architecture[:60]} in config.json says neither how to ask nor what to read: "
            "add sentence-transformers' files (CrossEncoder.save_pretrained), or its prompt by --catalogue"
        )
    prompt = parse_prompt(known.prompt, known.id, CATALOGUE)
    answers = find_answers(checkpoint, prompt, parse_answers(known.prompt, known.id))
    return answers, "last", prompt


def is_classifier(checkpoint: Checkpoint) -> bool:
    """Whether the network has a head of its own for labels."""
    return architecture_of(checkpoint.config).endswith("ForSequenceClassification")


def _check_classifier(checkpoint: Checkpoint) -> None:
    """Raises ModelLoadError unless the config describes a classifier with one label."""
    config, where = checkpoint.config, f"{checkpoint.directory}/config.json"
    labels = len(config.get("id2label") or ()) or config.get("num_labels", 2)
    if labels != 1:
        raise ModelLoadError(
            f"{where}: {labels} labels where a reranker has 1: use a checkpoint with one label"
        )
    if config.get("is_decoder") or config.get("is_encoder_decoder"):
        raise ModelLoadError(
            f"{where}: {checkpoint.family} is a decoder here, which is not supported: use an encoder"
        )


def _classifier_pooling(checkpoint: Checkpoint) -> str:
    """The rows that config.json says, or else the catalogue; of a decoder the loader takes the last."""
    named = checkpoint.config.get("classifier_pooling")
    if named is None:
        return (checkpoint.known and checkpoint.known.pooling) or "first"
    if str(named) not in CLASSIFIER_POOLINGS:
        raise ModelLoadError(
            f"{checkpoint.directory}/config.json: classifier_pooling {str(named)[:40]!r} is not supported: "
            "use a checkpoint with cls or mean"
        )
    return CLASSIFIER_POOLINGS[str(named)]


def _template_settings(checkpoint: Checkpoint, saved: SavedModel, default: str) -> TemplateSettings:
    options = (saved.transformer.get("processing_kwargs") or {}).get("chat_template") or {}
    message = (saved.transformer.get("modality_config") or {}).get("message") or {}
    return TemplateSettings(
        kwargs=options,
        message_format=str(message.get("format", "auto")),
        instruction=default,
        family=checkpoint.family,
    )
