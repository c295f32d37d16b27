"""Late interaction as PyLate, Stanford's ColBERT and sentence-transformers save it."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_grpc.checkpoints.checkpoint import Checkpoint, read_header
from rerank_grpc.checkpoints.disk import check_types, read_json
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Chain, Evidence, Kind, LateInteraction, Module, Reading
from rerank_grpc.evidence.modules import MODULES, PREFIXES, SETTINGS, TRANSFORMER, SavedModel, stated_limit
from rerank_grpc.types import Scoring

STANFORD, METADATA = "HF_ColBERT", "artifact.metadata"
# Any of these in the settings tells that PyLate saved them; a query is then expanded unless they say no.
PYLATE_KEYS = frozenset(PREFIXES) | {
    "query_length",
    "document_length",
    "query_expansion",
    "do_query_expansion",
    "attend_to_expansion_tokens",
    "attend_to_mask_tokens",
    "skiplist_words",
}
METADATA_TYPES: Mapping[str, type] = {
    **dict.fromkeys(("attend_to_mask_tokens", "mask_punctuation"), bool),
    **dict.fromkeys(("query_token_id", "doc_token_id"), str),
}
CLASSIC_LENGTH = 32  # of an expanded query, where the files state none
ROWS = "token_embeddings"
IDENTITY = "torch.nn.modules.linear.Identity"


@dataclass(frozen=True, slots=True)
class Expansion:
    """How a query is filled up, and whether a longer one is cut to the same length."""

    length: int
    attends: bool = False
    fixed: bool = True
    token: str | None = None


def is_late(checkpoint: Checkpoint, saved: SavedModel) -> bool:
    """Whether a directory holds a model of late interaction, by the class that saved it."""
    model_type = saved.settings.get("model_type")
    if model_type not in (None, "SentenceTransformer"):
        return model_type in ("ColBERT", "MultiVectorEncoder")
    # PyLate's first releases name no class.
    return _is_stanford(checkpoint) or any(key in saved.settings for key in PREFIXES)


def read_late(checkpoint: Checkpoint, saved: SavedModel) -> Evidence:
    """Reads how texts become vectors of tokens.

    Raises ModelLoadError if the files contradict themselves, or ask for something that this version does not
    do.
    """
    if saved.has_modules:
        modules = tuple(_modules(saved))
        late, reading = _saved(checkpoint, saved)
    elif _is_stanford(checkpoint):
        modules = _stanford_modules(checkpoint)
        late, reading = _stanford(checkpoint)
    else:
        raise ModelLoadError(
            f"{saved.directory}: {SETTINGS} is there and {MODULES} is not: copy the whole checkpoint"
        )
    return Evidence(
        kind=Kind.LATE_INTERACTION,
        family=checkpoint.family,
        scoring=Scoring.MAXSIM,
        head=Chain(modules),
        pooling="all",
        reading=reading,
        max_tokens=_max_tokens(checkpoint, late),
        activation="meanmaxsim" if late.mean else "maxsim",
        late=late,
    )


def _is_stanford(checkpoint: Checkpoint) -> bool:
    return STANFORD in (checkpoint.config.get("architectures") or ())


def _max_tokens(checkpoint: Checkpoint, late: LateInteraction) -> int | None:
    """The longest text of either side; None where one has no limit but the network's."""
    if late.query_tokens is None or late.document_tokens is None:
        return checkpoint.known.max_tokens or None if checkpoint.known else None
    longest = max(late.query_tokens, late.document_tokens)
    known = checkpoint.known.max_tokens if checkpoint.known else 0
    return min(longest, known or longest)


# ---------------- PyLate's and sentence-transformers' files


def _saved(checkpoint: Checkpoint, saved: SavedModel) -> tuple[LateInteraction, Reading]:
    _check_transformer(saved)
    settings = saved.settings
    limit, expansion = stated_limit(checkpoint, saved), _expansion(saved)
    query = _query_limit(saved, expansion)
    document = _length(_knob(saved, "document_length"), saved.directory / TRANSFORMER, "document_length")
    late = LateInteraction(
        query_tokens=query or limit,
        document_tokens=document or limit,
        expanded_tokens=expansion.length if expansion else 0,
        expansion_token=expansion.token if expansion else None,
        attends_expansion=bool(expansion and expansion.attends),
        skipped=_skipped(saved),
        inserts_prefixes=any(key in settings for key in PREFIXES),
        mean=settings.get("similarity_fn_name") == "meanmaxsim",
    )
    reading = Reading(
        lower_case=bool(saved.transformer.get("do_lower_case")),
        query_prefix=_prefix(settings, "query"),
        document_prefix=_prefix(settings, "document"),
    )
    return late, reading


def _query_limit(saved: SavedModel, expansion: Expansion | None) -> int | None:
    """Reads the longest query; None where only the tokenizer limits it."""
    where = saved.directory / TRANSFORMER
    # Where queries are expanded by PyLate's settings, its query_length is the length of that.
    stated = saved.transformer.get("query_length") if _is_classic(saved) else _knob(saved, "query_length")
    limit = _length(stated, where, "query_length")
    if expansion is None:
        return limit
    if limit is not None and limit < expansion.length:
        raise ModelLoadError(
            f"{where}: query_length {limit} is less than the {expansion.length} tokens of query_expansion: "
            "correct one of them"
        )
    return expansion.length if expansion.fixed else limit


def _modules(saved: SavedModel) -> Iterator[Module]:
    """Yields the modules over the rows; PyLate's norm, which its files do not list, is added."""
    path, last = saved.directory / MODULES, ""
    for module in saved.modules:
        if module.type != "MultiVectorMask":
            _check_module(path, module)
            last = module.type
            yield module
    if not _is_native(saved):
        if last != "Dense":
            raise ModelLoadError(
                f"{path}: does not end in a Dense, as PyLate's do: copy the whole checkpoint"
            )
        yield Module("Normalize", saved.directory, {})
    elif last != "Normalize":
        raise ModelLoadError(
            f"{path}: does not end in Normalize: vectors of other lengths than 1 are not supported: "
            "use another checkpoint"
        )


def _check_module(path: Path, module: Module) -> None:
    """Raises ModelLoadError unless a module makes rows of rows."""
    if module.type not in ("Dense", "Normalize"):
        text = f"{module.type} is a module which this version does not know in late interaction"
        raise ModelLoadError(f"{path}: {text}: use another checkpoint")
    # A Normalize without a name is one for pooled rows, of which there are none.
    default = ROWS if module.type == "Dense" else "sentence_embedding"
    source = module.config.get("module_input_name") or default
    target = module.config.get("module_output_name") or source
    if (source, target) != (ROWS, ROWS):
        raise ModelLoadError(
            f"{module.directory / 'config.json'}: makes {str(target)[:40]!r} of {str(source)[:40]!r}, where "
            f"late interaction has {ROWS!r}: use another checkpoint"
        )


def _is_native(saved: SavedModel) -> bool:
    """Whether sentence-transformers saved it, whose files list all modules."""
    return saved.settings.get("model_type") == "MultiVectorEncoder"


def _knob(saved: SavedModel, name: str) -> Any:
    """Reads a setting of the transformer, which PyLate has among the model's."""
    return saved.transformer[name] if name in saved.transformer else saved.settings.get(name)


def _is_classic(saved: SavedModel) -> bool:
    """Whether PyLate says by settings of its own that queries are expanded."""
    if any("query_expansion" in each for each in (saved.transformer, saved.settings)):
        return False
    return (
        not PYLATE_KEYS.isdisjoint(saved.settings) and saved.settings.get("do_query_expansion") is not False
    )


def _expansion(saved: SavedModel) -> Expansion | None:
    """Reads how a query is filled up; None where it is not."""
    if _is_classic(saved):
        return _classic_expansion(saved)
    stated, where = _knob(saved, "query_expansion"), saved.directory / TRANSFORMER
    if stated is None:
        return None
    if not isinstance(stated, dict) or set(stated) - {"strategy", "attend", "token", "length"}:
        raise ModelLoadError(f"{where}: query_expansion has settings that this version does not know")
    strategy, attends, token = stated.get("strategy"), stated.get("attend", False), stated.get("token")
    length = _length(stated.get("length"), where, "query_expansion's length")
    known = strategy in ("fixed", "min") and isinstance(attends, bool) and isinstance(token, str | None)
    if not known or length is None:
        text = f"query_expansion {str(stated)[:80]} is incomplete or unknown"
        raise ModelLoadError(f"{where}: {text}: copy the file again")
    return Expansion(length, attends, strategy == "fixed", token)


def _classic_expansion(saved: SavedModel) -> Expansion:
    settings = saved.settings
    attends = settings.get("attend_to_expansion_tokens", settings.get("attend_to_mask_tokens"))
    length = _length(settings.get("query_length"), saved.directory / SETTINGS, "query_length")
    return Expansion(length or CLASSIC_LENGTH, attends=bool(attends))


def _length(value: Any, where: Path, name: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelLoadError(f"{where}: {name} {str(value)[:40]!r} is no number of tokens: copy it again")
    return value


def _skipped(saved: SavedModel) -> tuple[str, ...]:
    """Lists the tokens that documents leave out, by the mask's own file or by PyLate's settings."""
    masks = saved.of_type("MultiVectorMask")
    if len(masks) != int(_is_native(saved)):
        raise ModelLoadError(
            f"{saved.directory / MODULES}: has {len(masks)} of MultiVectorMask, which its "
            f"{SETTINGS} contradicts: copy the whole checkpoint"
        )
    if not masks:
        return _words(saved.settings.get("skiplist_words"), saved.directory / SETTINGS, string.punctuation)
    config, where = masks[0].config, masks[0].directory / "config.json"
    if config.get("keep_only_token_ids"):
        raise ModelLoadError(f"{where}: keep_only_token_ids, for images, is not supported")
    tasks = config.get("skiplist_tasks")
    if tasks not in (None, "document", ["document"]):
        raise ModelLoadError(
            f"{where}: skiplist_tasks {str(tasks)[:60]!r} is not supported: only 'document' is"
        )
    return _words(config.get("skiplist_words"), where, "")


def _words(value: Any, where: Path, default: str) -> tuple[str, ...]:
    if value is None:
        return tuple(default)
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ModelLoadError(f"{where}: skiplist_words is no list of tokens: copy it again")
    return tuple(value)


def _prefix(settings: Mapping[str, Any], side: str) -> str:
    """Composes what stands before the texts of one side: PyLate's prefix, and behind it the prompt."""
    prefix: str = settings.get(f"{side}_prefix") or ""
    prompt: str = (settings.get("prompts") or {}).get(side) or ""
    return prefix + prompt.removeprefix(prefix)


def _check_transformer(saved: SavedModel) -> None:
    """Raises ModelLoadError if the transformer does more than to give its last rows."""
    transformer = saved.transformer
    asked = {
        "another task": transformer.get("transformer_task", "feature-extraction") != "feature-extraction",
        "a chat template around its texts": "message" in (transformer.get("modality_config") or {}),
        "processing_kwargs": bool(transformer.get("processing_kwargs")),
    }
    if reason := next((name for name, found in asked.items() if found), None):
        raise ModelLoadError(
            f"{saved.directory / TRANSFORMER}: asks for {reason}, which late interaction does not have here: "
            "use another checkpoint"
        )


# ---------------- Stanford's files


def _stanford(checkpoint: Checkpoint) -> tuple[LateInteraction, Reading]:
    path = checkpoint.directory / METADATA
    data = read_json(path) if path.is_file() else {}
    check_types(data, METADATA_TYPES, path)
    if data.get("similarity", "cosine") != "cosine":
        raise ModelLoadError(f"{path}: similarity {str(data['similarity'])[:40]!r} is not supported")
    length = _length(data.get("query_maxlen"), path, "query_maxlen") or CLASSIC_LENGTH
    document = _length(data.get("doc_maxlen"), path, "doc_maxlen")
    late = LateInteraction(
        query_tokens=length,
        document_tokens=document or stated_limit(checkpoint, SavedModel(checkpoint.directory)),
        expanded_tokens=length,
        attends_expansion=bool(data.get("attend_to_mask_tokens")),
        skipped=tuple(string.punctuation) if data.get("mask_punctuation", True) else (),
        inserts_prefixes=True,
    )
    query, text = data.get("query_token_id") or "[unused0]", data.get("doc_token_id") or "[unused1]"
    return late, Reading(query_prefix=f"{query} ", document_prefix=f"{text} ")


def _stanford_modules(checkpoint: Checkpoint) -> tuple[Module, ...]:
    """Describes the projection, whose weight stands among the body's, and the norm behind it."""
    directory = checkpoint.directory
    entry = read_header(checkpoint.weights[0]).get("linear.weight")
    if len(checkpoint.weights) != 1 or entry is None or len(entry["shape"]) != 2:
        raise ModelLoadError(
            f"{checkpoint.weights[0]}: has no linear.weight, by which rows are projected: "
            "copy the whole checkpoint"
        )
    outputs, inputs = entry["shape"]
    config = {"in_features": inputs, "out_features": outputs, "bias": False, "activation_function": IDENTITY}
    return Module("Dense", directory, config), Module("Normalize", directory, {})
