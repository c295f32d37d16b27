"""Tokenizes ASCII text without the steps before the model that Python does in less time.

A table of the normalizers' answers to the 128 characters replaces them, and
str.split the splitting at white space of tokenizers that then mark each word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from tokenizers import Encoding, Tokenizer, normalizers, pre_tokenizers

from rerank_grpc.tokenizer.cuts import CHARACTERWISE, keeps_letters

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

    `short` is `whole` without the normalizers for whose answers to each ASCII
    character `table` stands; an answer that is not ASCII sends the text the long
    way. If `spaced`, it does not split either: one space is to stand between
    words, and none around them.
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
    steps = list(_steps(tokenizer.normalizer))
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


def _steps(normalizer: Any) -> Iterator[Any]:
    if isinstance(normalizer, normalizers.Sequence):
        for index in range(len(normalizer)):
            yield from _steps(normalizer[index])
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
    """Finds the Metaspace of a tokenizer that splits at white space and then marks each word.

    Returns None for other tokenizers, and for a mark that an ASCII text may hold.
    """
    if not isinstance(pre_tokenizer, pre_tokenizers.Sequence):
        return None
    steps = json.loads(pre_tokenizer.__getstate__())["pretokenizers"]
    if [step["type"] for step in steps] != ["WhitespaceSplit", "Metaspace"]:
        return None
    marking = pre_tokenizer[1]
    apart = not marking.replacement.isascii() and marking.replacement not in table.values()
    return marking if apart and marking.prepend_scheme == "always" and marking.split else None
