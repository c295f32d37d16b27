"""Reads the files of sentence-transformers: its modules, and how its transformer treats texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerank_grpc.checkpoints.checkpoint import Checkpoint
from rerank_grpc.checkpoints.disk import check_types, read_json, read_json_list
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Module

MODULES, SETTINGS, TRANSFORMER = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
# Names that older releases gave to TRANSFORMER.
OLDER_TRANSFORMERS = tuple(
    f"sentence_{family}_config.json"
    for family in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
PREFIXES = ("query_prefix", "document_prefix")  # of PyLate, which inserts them as tokens
# The types of the keys that are read here; null is like a missing key.
SETTINGS_TYPES: Mapping[str, type] = {
    "prompts": dict,
    **dict.fromkeys(("model_type", "default_prompt_name", "activation_fn", "similarity_fn_name"), str),
    **dict.fromkeys(PREFIXES, str),
}
NAME_CHARACTERS = 100  # of a module's folder; file systems end at 255 bytes
PROMPT_CHARACTERS = 100_000  # as many as a request's own instruction may have
LONGEST = 1 << 30  # tokenizers without a limit state one beyond it
# Options for what reads the tokenizer, the config and the weights, under their old and new names; of those
# and of the tokenizer's call, these say nothing that changes a score, or are read elsewhere.
OPTIONS = ("processor_kwargs", "tokenizer_args", "config_kwargs", "config_args", "model_kwargs", "model_args")
TRANSFORMER_TYPES: Mapping[str, type] = {
    "max_seq_length": int,
    "do_lower_case": bool,
    "transformer_task": str,
    **dict.fromkeys(("modality_config", "processing_kwargs", *OPTIONS), dict),
}
HARMLESS = frozenset(
    [
        "max_length",
        "model_max_length",
        "padding",
        "padding_side",
        "return_tensors",
        "logits_to_keep",
        "dtype",
        "torch_dtype",
        "attn_implementation",
        "use_fast",
        "use_safetensors",
        "trust_remote_code",
    ]
)
LONGEST_FIRST = (True, False, "longest_first")  # ways of cutting by which a pair that fits stays whole
# The rows or logits that a transformer gives, by its task.
OUTPUTS = {
    "feature-extraction": "last_hidden_state",
    "sequence-classification": "logits",
    "text-generation": "logits",
}
# Older releases of sentence-transformers and PyLate had their modules under other paths.
STOCK = re.compile(r"(?:sentence_transformers(?:\.\w+)*|pylate\.models(?:\.\w+)*)\.(\w+)")
KNOWN = frozenset(
    {"Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "LogitScore", "MultiVectorMask", "Dropout"}
)


@dataclass(frozen=True, slots=True)
class SavedModel:
    """The content of a directory that sentence-transformers has saved, or that looks so."""

    directory: Path
    modules: tuple[Module, ...] = ()  # behind the transformer; () without a modules.json too
    has_modules: bool = False  # whether there is a modules.json
    settings: Mapping[str, Any] = field(default_factory=dict)  # config_sentence_transformers.json
    transformer: Mapping[str, Any] = field(default_factory=dict)  # sentence_bert_config.json

    @property
    def model_type(self) -> str:
        """The class that saved it; "SentenceTransformer" where modules.json alone speaks."""
        return str(self.settings.get("model_type") or ("SentenceTransformer" if self.has_modules else ""))

    @property
    def default_prompt(self) -> str:
        """The prompt that sentence-transformers takes where the caller names none; raises ModelLoadError."""
        name = self.settings.get("default_prompt_name")
        if not name:
            return ""
        prompts = self.settings.get("prompts") or {}
        if name not in prompts:
            raise ModelLoadError(
                f"{self.directory}/{SETTINGS}: default_prompt_name {str(name)[:40]!r} is none of its prompts"
            )
        return str(prompts[name] or "")

    def of_type(self, *types: str) -> list[Module]:
        """Lists the modules of some types, in their order."""
        return [module for module in self.modules if module.type in types]


def read_saved_model(directory: Path) -> SavedModel:
    """Reads whatever there is of sentence-transformers' files.

    Raises ModelLoadError for a file that cannot be read, and for a module that is not stock.
    """
    settings, path = _read_settings(directory / SETTINGS), directory / MODULES
    if not path.is_file():  # sentence-transformers then reads nothing about the transformer either
        return SavedModel(directory, settings=settings)
    own = _transformer_file(directory)
    transformer = _read_transformer(own)
    _check_options(transformer, own)
    _check_output(transformer, own)
    return SavedModel(directory, tuple(_read_modules(path)), True, settings, transformer)


def _transformer_file(directory: Path) -> Path:
    """Finds the file about the transformer under its name of today, or else an older one."""
    names = (TRANSFORMER, *OLDER_TRANSFORMERS)
    return next((directory / name for name in names if (directory / name).is_file()), directory / TRANSFORMER)


def _read_settings(path: Path) -> Mapping[str, Any]:
    settings = _read(path)
    check_types(settings, SETTINGS_TYPES, path)
    prompts = settings.get("prompts") or {}
    check_types(prompts, dict.fromkeys(prompts, str), path)
    texts = {f"prompt {name[:40]!r}": prompt for name, prompt in prompts.items()}
    texts |= {name: settings.get(name) for name in PREFIXES}
    for name, text in texts.items():
        if text and len(text) > PROMPT_CHARACTERS:
            raise ModelLoadError(
                f"{path}: its {name} has {len(text):,} characters: more than {PROMPT_CHARACTERS:,} are not "
                "supported: write a shorter one"
            )
        if text and not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ModelLoadError(
                f"{path}: its {name} holds a lone surrogate, which is no text: copy it again"
            )
    return settings


def _read_transformer(path: Path) -> Mapping[str, Any]:
    transformer = _read(path)
    check_types(transformer, TRANSFORMER_TYPES, path)
    for name in ("modality_config", "processing_kwargs"):
        check_types(transformer.get(name) or {}, dict.fromkeys(transformer.get(name) or (), dict), path)
    longest = transformer.get("max_seq_length")
    if longest is not None and longest < 1:
        raise ModelLoadError(f"{path}: max_seq_length is {longest}, which leaves no token: correct it")
    return transformer


def _check_options(transformer: Mapping[str, Any], path: Path) -> None:
    """Raises ModelLoadError for options by which transformers would read texts or weights in another way."""
    processing = transformer.get("processing_kwargs") or {}
    asked = {name: processing.get(name) for name in ("text", "common")}
    asked |= {name: transformer.get(name) for name in OPTIONS}
    for group, options in asked.items():
        for name, value in (options or {}).items():
            harmless = value in LONGEST_FIRST if name == "truncation" else name in HARMLESS
            if not harmless and value is not None:
                raise ModelLoadError(
                    f"{path}: {group} has {str(name)[:40]!r}, which this version does not do: "
                    "use another checkpoint"
                )


def _check_output(transformer: Mapping[str, Any], path: Path) -> None:
    """Raises ModelLoadError unless texts and messages are read by the network's forward, to its end."""
    usual = OUTPUTS.get(str(transformer.get("transformer_task", "feature-extraction")))
    for name, asked in (transformer.get("modality_config") or {}).items():
        method, output = asked.get("method", "forward"), asked.get("method_output_name", usual)
        if name in ("text", "message") and usual and (method != "forward" or output not in (usual, [usual])):
            raise ModelLoadError(
                f"{path}: reads {str(output)[:60]!r} of {str(method)[:40]!r}, where {usual!r} of 'forward' "
                "is supported: use another checkpoint"
            )


def _read(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.is_file() else {}


def _read_modules(path: Path) -> list[Module]:
    modules = [_read_module(path, entry) for entry in read_json_list(path)]
    if not modules or modules[0].type != "Transformer":
        raise ModelLoadError(f"{path}: does not begin with a Transformer: use another checkpoint")
    if modules[0].directory != path.parent:
        place = modules[0].directory.name
        raise ModelLoadError(f"{path}: its Transformer is in {place}/: move the files of {place}/ beside it")
    return [module for module in modules[1:] if module.type != "Dropout"]  # does nothing but in training


def _read_module(path: Path, entry: Any) -> Module:
    try:
        name, place = "" + entry["type"], "" + entry["path"]
    except (TypeError, KeyError):
        raise ModelLoadError(f"{path}: an entry has no type or path that is a text: copy it again") from None
    stock = STOCK.fullmatch(name)
    if stock is None or stock[1] not in KNOWN:
        raise ModelLoadError(
            f"{path}: {name[:100]} is a module which this version cannot score with: use another checkpoint"
        )
    if place == ".." or Path(place).name != place or len(place) > NAME_CHARACTERS:
        raise ModelLoadError(f"{path}: path {place[:100]!r} leaves the directory: use another checkpoint")
    directory = path.parent / place if place else path.parent
    config = {} if stock[1] == "Transformer" else _read(directory / "config.json")
    return Module(stock[1], directory, config)


def max_tokens(checkpoint: Checkpoint, saved: SavedModel) -> int | None:
    """The lower limit of the catalogue and of the files; None where neither states one."""
    known = checkpoint.known.max_tokens if checkpoint.known else 0
    return min((limit for limit in (known, stated_limit(checkpoint, saved)) if limit), default=None)


def stated_limit(checkpoint: Checkpoint, saved: SavedModel) -> int | None:
    """The longest sequence by the first file that states one; raises ModelLoadError for one of no number."""
    processing = saved.transformer.get("processing_kwargs") or {}
    # Options for a template go before those of the call, of which a text's own give way to the common ones.
    templated = "message" in (saved.transformer.get("modality_config") or {})
    groups = ("chat_template", "text", "common") if templated else ("common", "text")
    options = saved.transformer.get("processor_kwargs") or saved.transformer.get("tokenizer_args") or {}
    path = checkpoint.directory / "tokenizer_config.json"
    declared = read_json(path).get("model_max_length") if path.is_file() else None
    if not isinstance(declared, int | float | None):
        raise ModelLoadError(f"{path}: model_max_length is {str(declared)[:40]!r} where a number is expected")
    stated: list[Any] = [
        *(processing.get(group, {}).get("max_length") for group in groups),
        options.get("model_max_length"),
        saved.transformer.get("max_seq_length"),
        declared,
    ]
    limits = (int(limit) for limit in stated if isinstance(limit, int | float) and 1 <= limit < LONGEST)
    return next(limits, None)
