"""The order of evidence: a checkpoint's own files first, then the catalogue; without either, a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.checkpoints.disk import read_json
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.cutting import read_tokenizer
from rerank_grpc.evidence.facts import (
    Answers,
    Chain,
    Classifier,
    Evidence,
    Head,
    Kind,
    Module,
    Reading,
)
from rerank_grpc.evidence.heads import activation_of, find_answers, pooling_of, stated_answer
from rerank_grpc.evidence.late import is_late, read_late
from rerank_grpc.evidence.modules import SETTINGS, SavedModel, read_saved_model
from rerank_grpc.evidence.prompt import Prompt, parse_answers, parse_prompt
from rerank_grpc.evidence.template import TemplateSettings, find_templates, read_template
from rerank_grpc.types import Scoring

CATALOGUE = "catalogue.toml"
LONGEST = 1 << 30  # tokenizers without a limit state one beyond it
# The names of a pooling in a config.json, old and new, and ours.
CLASSIFIER_POOLINGS = {"cls": "first", "mean": "mean"}


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
        evidence = _cross_encoder(checkpoint, saved)
    if (known := checkpoint.known) is not None:
        evidence = replace(evidence, scale=known.scale, offset=known.offset)
        known.check(
            kind=evidence.kind.value,
            family=evidence.family,
            pooling=evidence.pooling,
            directory=checkpoint.directory,
        )
    return evidence


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that config.json names; "none" if it names none."""
    return str((config.get("architectures") or ["none"])[0])


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
    # A classifier's only module is the transformer; older releases saved it without a model_type.
    return saved.model_type == "SentenceTransformer" and not (
        (_is_classifier(checkpoint) and not saved.modules) or saved.of_type("LogitScore")
    )


# ---------------- Cross-encoders


def _cross_encoder(checkpoint: Checkpoint, saved: SavedModel) -> Evidence:
    prompt: Prompt | None = None
    if saved.has_modules:
        head, pooling = _saved_head(checkpoint, saved)
        templated = "message" in (saved.transformer.get("modality_config") or {})
    else:
        head, pooling, prompt = _bare_head(checkpoint, saved)
        # Without a word of its own, sentence-transformers takes the chat template wherever there is one.
        templated = prompt is None and bool(find_templates(checkpoint.directory))
    default = _default_prompt(saved) if saved.has_modules else ""
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
        max_tokens=_max_tokens(checkpoint, saved),
        activation=activation,
    )


def _check_end(checkpoint: Checkpoint, prompt: Prompt | None) -> None:
    """Raises ModelLoadError if sequences end with the token that pads.

    A classifier of transformers reads the last token that is another, which would be the one before.
    """
    tokenizer = read_tokenizer(checkpoint.tokenizer_file)
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
    if _is_classifier(checkpoint) and not types:
        task = "sequence-classification"
    match task, types:
        case "sequence-classification", []:
            _check_classifier(checkpoint)
            return Classifier(), _classifier_pooling(checkpoint)
        case "text-generation", ["LogitScore"]:
            return _logit_score(checkpoint, saved.modules[0]), "last"
        case "feature-extraction", ["Pooling", *others] if others and others[-1] == "Dense":
            head = Chain(saved.modules[1:])
            _check_chain(head)
            return head, pooling_of(saved.modules[0])
    listed = ", ".join(["Transformer", *types])
    raise ModelLoadError(
        f"{path}/modules.json: {listed} ({task[:40]}) is a reranker that this version cannot score: "
        "use another checkpoint"
    )


def _check_chain(head: Chain) -> None:
    """Raises ModelLoadError unless the last module, and no other, makes the score."""
    for module in head.modules:
        where, config = f"{module.directory}/config.json", module.config
        if module.type not in ("Dense", "LayerNorm", "Normalize"):
            raise ModelLoadError(f"{where}: {module.type} behind the pooling is not supported")
        last = module is head.modules[-1]
        name = config.get("module_output_name") or config.get("module_input_name") or "sentence_embedding"
        if (name == "scores") is not last or config.get("module_input_name", name) not in (
            "sentence_embedding",
            name if not last else "",
        ):
            raise ModelLoadError(
                f"{where}: gives {str(name)[:40]!r} where the chain needs another: not supported"
            )
    if (outputs := head.modules[-1].config.get("out_features")) != 1:
        raise ModelLoadError(
            f"{where}: gives {outputs} scores where a reranker has 1: use another checkpoint"
        )


def _logit_score(checkpoint: Checkpoint, module: Module) -> Answers:
    true, false = module.config.get("true_token_id"), module.config.get("false_token_id")
    where = module.directory / "config.json"
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
    if _is_classifier(checkpoint):
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


def _is_classifier(checkpoint: Checkpoint) -> bool:
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
    return CLASSIFIER_POOLINGS.get(str(named), str(named))  # transformers refuses another name


# ---------------- Bi-encoders


def _bi_encoder(checkpoint: Checkpoint, saved: SavedModel) -> Evidence:
    types = [module.type for module in saved.modules]
    if types[:1] != ["Pooling"] or {*types[1:]} - {"Dense", "LayerNorm", "Normalize"}:
        raise ModelLoadError(
            f"{saved.directory}/modules.json: {', '.join(['Transformer', *types])}: "
            "this version knows a transformer with pooling, dense layers and norms"
        )
    similarity, prompts = saved.settings.get("similarity_fn_name"), saved.settings.get("prompts") or {}
    if similarity not in (None, "cosine"):
        text = f"asks for the similarity {str(similarity)[:40]!r}, which this version does not do"
        raise ModelLoadError(f"{saved.directory}/{SETTINGS}: {text}")
    query = prompts.get("query") or ""
    document = (
        next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), "") or ""
    )
    if _default_prompt(saved) and not (query or document):
        text = "asks for a prompt before its texts, and says not whether queries or documents have it"
        raise ModelLoadError(f"{saved.directory}/{SETTINGS}: {text}: use another checkpoint")
    return Evidence(
        kind=Kind.BI_ENCODER,
        family=checkpoint.family,
        scoring=Scoring.COSINE,
        head=Chain(saved.modules[1:]),
        pooling=pooling_of(saved.modules[0]),
        reading=Reading(
            lower_case=bool(saved.transformer.get("do_lower_case")),
            query_prefix=str(query),
            document_prefix=str(document),
        ),
        max_tokens=_max_tokens(checkpoint, saved),
        activation="cosine",
    )


# ---------------- What all kinds share


def _default_prompt(saved: SavedModel) -> str:
    """The prompt that sentence-transformers takes where the caller names none."""
    name = saved.settings.get("default_prompt_name")
    if not name:
        return ""
    prompts = saved.settings.get("prompts") or {}
    if name not in prompts:
        raise ModelLoadError(
            f"{saved.directory}/{SETTINGS}: default_prompt_name {str(name)[:40]!r} is none of its prompts"
        )
    return str(prompts[name] or "")


def _template_settings(checkpoint: Checkpoint, saved: SavedModel, default: str) -> TemplateSettings:
    options = (saved.transformer.get("processing_kwargs") or {}).get("chat_template") or {}
    message = (saved.transformer.get("modality_config") or {}).get("message") or {}
    return TemplateSettings(
        kwargs=options,
        message_format=str(message.get("format", "auto")),
        instruction=default,
        family=checkpoint.family,
    )


def _max_tokens(checkpoint: Checkpoint, saved: SavedModel) -> int | None:
    """The lower limit of the catalogue and of the files, of which the first that states one decides."""
    text = (saved.transformer.get("processing_kwargs") or {}).get("text") or {}
    options = saved.transformer.get("processor_kwargs") or saved.transformer.get("tokenizer_args") or {}
    path = checkpoint.directory / "tokenizer_config.json"
    declared = read_json(path).get("model_max_length") if path.is_file() else None
    stated: list[Any] = [
        text.get("max_length"),
        options.get("model_max_length"),
        saved.transformer.get("max_seq_length"),
        declared,
    ]
    usable = [int(limit) for limit in stated if isinstance(limit, int | float) and 1 <= limit < LONGEST]
    known = checkpoint.known.max_tokens if checkpoint.known else 0
    return min((limit for limit in (known, *usable[:1]) if limit), default=None)
