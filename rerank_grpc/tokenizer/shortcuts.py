"""Shorter ways to the same tokens: long texts read in part, ASCII texts without their normalizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, TypeAlias

from tokenizers import Encoding, Tokenizer, normalizers, pre_tokenizers

Step: TypeAlias = Mapping[str, Any]  # one normalizer or pre-tokenizer of a tokenizer.json

# Normalizers whose answer to an ASCII character depends on no neighbour, "\r\n" apart.
CHARACTERWISE = frozenset(
    {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "StripAccents"}
)

# ---------------- Long texts: may they be read in part?

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
    normalizing = _steps_in_json(data.get("normalizer"), "normalizers")
    splitting = _steps_in_json(data.get("pre_tokenizer"), "pretokenizers")
    local = all(step["type"] in _LOCAL and keeps_letters(step) for step in normalizing)
    wordwise = all(step["type"] in _WORDWISE or _splits_words(step) for step in splitting)
    splits = wordwise and any(map(_splits_before_space, splitting))
    spaced = any(" " in token["content"].strip() for token in data["added_tokens"])
    prefix = local and splits and not spaced
    return prefix, prefix and not any(step["type"] in _AT_START for step in normalizing)


def _steps_in_json(step: Step | None, inner: str) -> list[Step]:
    """Lists the steps of a tokenizer.json's entry; a Sequence has its own under `inner`."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [leaf for child in step[inner] for leaf in _steps_in_json(child, inner)]
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


# ---------------- ASCII texts: a table in the normalizer's place

# White space to str.split, but not to the tokenizer.
_SEPARATORS = range(0x1C, 0x20)
_ASCII = [chr(code) for code in range(128)]
# The table's answer to a character that it does not settle, or that is left out.
_LONG_WAY = "\x80"
# An ASCII text of at most so many characters takes some 20 µs: in a busy server, less than to release
# the GIL and get it back, as encode_batch_fast does.
SHORT_TEXT = 128


@dataclass(frozen=True, slots=True)
class AsciiTokenizer:
    """A tokenizer with a shorter way for ASCII texts, where it has one, and the same tokens.

    `short` is `whole` without the normalizers for whose answers to each ASCII character `table` stands; an
    answer that is not ASCII sends the text the long way. If `spaced`, it does not split either: one space is
    to stand between words, and none around them.
    """

    whole: Tokenizer
    short: Tokenizer
    table: dict[int, str] = field(default_factory=dict)
    spaced: bool = False

    def encode_batch(self, texts: Sequence[str]) -> Sequence[Encoding]:
        """Encodes texts without control tokens and offsets; raises as Tokenizer.encode_batch_fast does.

        It releases the GIL, except for one short ASCII text.
        """
        plain = texts
        if self.table:
            plain = [text.translate(self.table) if text.isascii() else text for text in texts]
        if self.spaced:
            plain = [" ".join(text.split()) if text.isascii() else text for text in plain]
        if len(plain) == 1 and len(plain[0]) <= SHORT_TEXT and plain[0].isascii():
            return [self.short.encode(plain[0], add_special_tokens=False)]
        if self.short is self.whole or all(map(str.isascii, plain)):
            return self.short.encode_batch_fast(plain, add_special_tokens=False)
        short = [text for text in plain if text.isascii()]
        long = [text for text, translated in zip(texts, plain, strict=True) if not translated.isascii()]
        shorts: Iterator[Encoding] = iter(self.short.encode_batch_fast(short, add_special_tokens=False))
        longs: Iterator[Encoding] = iter(self.whole.encode_batch_fast(long, add_special_tokens=False))
        return [next(shorts if translated.isascii() else longs) for translated in plain]


def ascii_tokenizer(tokenizer: Tokenizer) -> AsciiTokenizer:
    """Finds the shorter way of a tokenizer without visible added tokens."""
    steps = list(_normalizers_in(tokenizer.normalizer))
    known = list(takewhile(lambda step: type(step).__name__ in CHARACTERWISE, steps))
    first, rest = normalizers.Sequence(known), steps[len(known) :]
    table = {ord(character): first.normalize_str(character) for character in _ASCII}
    if not known or any(len(answer) > 1 for answer in table.values()) or not _holds(first, table):
        return AsciiTokenizer(tokenizer, tokenizer)
    short = Tokenizer(tokenizer.model)  # shares the vocabulary
    short.normalizer = normalizers.Sequence(rest)
    marking = _marking(tokenizer.pre_tokenizer, table) if all(map(_keeps_words, rest)) else None
    pre_tokenizer = tokenizer.pre_tokenizer if marking is None else marking
    if pre_tokenizer is not None:
        short.pre_tokenizer = pre_tokenizer
    if marking is not None:
        table |= {code: "" for code in _SEPARATORS if table[code].isspace()}
    table[ord("\r")] = ""  # "\r\n" may be one character to the normalizers
    table = {code: answer or _LONG_WAY for code, answer in table.items()}
    return AsciiTokenizer(tokenizer, short, table, spaced=marking is not None)


def _normalizers_in(normalizer: Any) -> Iterator[Any]:
    """Yields the normalizers of a tokenizer in memory, out of their Sequences."""
    if isinstance(normalizer, normalizers.Sequence):
        for index in range(len(normalizer)):
            yield from _normalizers_in(normalizer[index])
    elif normalizer is not None:
        yield normalizer


def _holds(normalizer: Any, table: dict[int, str]) -> bool:
    """Tells whether the table is right for every two neighbours; Precompiled may hold any rule."""
    single = [character for character in _ASCII if character != "\r"]
    pairs = "".join(one + other for one in single for other in single)
    return bool(normalizer.normalize_str(pairs) == pairs.translate(table))


def _keeps_words(normalizer: Any) -> bool:
    """Tells whether a normalizer does nothing to words with one space between them, and none around."""
    kinds = (normalizers.Strip, normalizers.Replace)
    return isinstance(normalizer, kinds) and keeps_letters(json.loads(normalizer.__getstate__()))


def _marking(pre_tokenizer: Any, table: dict[int, str]) -> pre_tokenizers.PreTokenizer | None:
    """Finds the Metaspace that splits at white space, then marks words; None if absent or ASCII."""
    if not isinstance(pre_tokenizer, pre_tokenizers.Sequence):
        return None
    steps = json.loads(pre_tokenizer.__getstate__())["pretokenizers"]
    if [step["type"] for step in steps] != ["WhitespaceSplit", "Metaspace"]:
        return None
    marking = pre_tokenizer[1]
    apart = not marking.replacement.isascii() and marking.replacement not in table.values()
    return marking if apart and marking.prepend_scheme == "always" and marking.split else None
