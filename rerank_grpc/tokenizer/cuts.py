"""Decides of which tokenizers a text may be read in part, with the tokens that the whole would give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Normalizers that change a text the same way whatever stands beyond a space between two letters.
_LOCAL = frozenset(
    {
        "BertNormalizer",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Lowercase",
        "StripAccents",
        "Precompiled",
        "Nmt",
        "ByteLevel",
        "Strip",
        "Prepend",
        "Replace",
    }
)
# What Replace may make one space of, so that letters and a lone space between them stay.
_SPACE_PATTERNS = frozenset({" {2,}", r"\s+", r"\s{2,}", r"\s{2,}|[\n\r\t]"})
# Of the normalizers, the ones that treat the beginning of a text as something special.
_AT_START = frozenset({"Strip", "Prepend"})

# Expressions by which Split makes words, and a space between two letters or digits begins one: Qwen's.
_SPLIT_PATTERNS = frozenset(
    {
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    }
)

# Pre-tokenizers that look no further than the word they are in.
_WORDWISE = frozenset(
    {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel", "Metaspace", "Punctuation", "Digits"}
)


def cut_safety(data: Mapping[str, Any]) -> tuple[bool, bool]:
    """Decides Vocabulary.splits_at_spaces and splits_suffix; anything unknown is not safe."""
    normalizers = _steps(data.get("normalizer"), "normalizers")
    pre_tokenizers = _steps(data.get("pre_tokenizer"), "pretokenizers")
    local = all(step["type"] in _LOCAL and is_local(step) for step in normalizers)
    known = all(step["type"] in _WORDWISE or _splits_words(step) for step in pre_tokenizers)
    splits = known and any(_splits_before_space(step) for step in pre_tokenizers)
    spaced = any(" " in token["content"].strip() for token in data["added_tokens"])
    prefix = local and splits and not spaced
    return prefix, prefix and not any(step["type"] in _AT_START for step in normalizers)


def _steps(step: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [leaf for child in step[inner] for leaf in _steps(child, inner)]
    return [step]


def is_local(step: Mapping[str, Any]) -> bool:
    """Whether a normalizer, if it is Replace, makes one space of several and no more."""
    if step["type"] != "Replace":
        return True
    return step["content"] == " " and step["pattern"].get("Regex") in _SPACE_PATTERNS


def _splits_words(step: Mapping[str, Any]) -> bool:
    if step["type"] != "Split" or step.get("invert") or step.get("behavior") != "Isolated":
        return False
    return step["pattern"].get("Regex") in _SPLIT_PATTERNS


def _splits_before_space(step: Mapping[str, Any]) -> bool:
    kind = step["type"]
    if _splits_words(step):
        return True
    if kind == "ByteLevel":
        return bool(step.get("use_regex", True))
    if kind == "Metaspace":
        return bool(step.get("split", True))
    return kind in {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
