"""Decides for which tokenizers a part of a text makes the tokens that the whole would make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Step: TypeAlias = Mapping[str, Any]  # one normalizer or pre-tokenizer of a tokenizer.json

# Normalizers whose answer to an ASCII character depends on no neighbour, "\r\n" apart.
CHARACTERWISE = frozenset(
    {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "StripAccents"}
)
# Normalizers to which the start of a text is special.
_AT_START = frozenset({"Strip", "Prepend"})
# Normalizers whose work on one side of a space between two letters depends on nothing beyond it.
_LOCAL = CHARACTERWISE | _AT_START | {"ByteLevel", "Replace"}
# Patterns that Replace may turn into one space without a change to letters and lone spaces.
_SPACE_PATTERNS = frozenset({" {2,}", r"\s+", r"\s{2,}", r"\s{2,}|[\n\r\t]"})

# Pre-tokenizers that look no further than the word they are in.
_WORDWISE = frozenset(
    {"BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"}
)
# The pattern by which Qwen's Split begins a word at each space between two letters or digits.
_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def cut_safety(data: Mapping[str, Any]) -> tuple[bool, bool]:
    """Returns Vocabulary's cuts_prefix and cuts_suffix for a tokenizer.json; an unknown step is not safe."""
    normalizers = _steps(data.get("normalizer"), "normalizers")
    pre_tokenizers = _steps(data.get("pre_tokenizer"), "pretokenizers")
    local = all(step["type"] in _LOCAL and keeps_letters(step) for step in normalizers)
    wordwise = all(step["type"] in _WORDWISE or _splits_words(step) for step in pre_tokenizers)
    splits = wordwise and any(map(_splits_before_space, pre_tokenizers))
    spaced = any(" " in token["content"].strip() for token in data["added_tokens"])
    prefix = local and splits and not spaced
    return prefix, prefix and not any(step["type"] in _AT_START for step in normalizers)


def _steps(step: Step | None, inner: str) -> list[Step]:
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [leaf for child in step[inner] for leaf in _steps(child, inner)]
    return [step]


def keeps_letters(step: Step) -> bool:
    """Tells whether a normalizer, if it is Replace, makes one space of several and no more."""
    if step["type"] != "Replace":
        return True
    return step["content"] == " " and step["pattern"].get("Regex") in _SPACE_PATTERNS


def _splits_words(step: Step) -> bool:
    if step["type"] != "Split" or step.get("invert") or step.get("behavior") != "Isolated":
        return False
    return bool(step["pattern"].get("Regex") == _SPLIT_PATTERN)


def _splits_before_space(step: Step) -> bool:
    match step["type"]:
        case "ByteLevel":
            return bool(step.get("use_regex", True))
        case "Metaspace":
            return bool(step.get("split", True))
        case "BertPreTokenizer" | "Whitespace" | "WhitespaceSplit":
            return True
    return _splits_words(step)
