"""Tokenizes ASCII text without the steps before the model that Python does in less time.

A table of the normalizers' answers to the 128 characters replaces them, and
str.split the splitting at white space of tokenizers that then mark each word.
Texts for which the table is not enough go the long way: other scripts, line
ends of two characters, characters that are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer, normalizers, pre_tokenizers

from rerank_grpc.tokenizer.cuts import CHARACTERWISE, keeps_letters

# White space to str.split, but not to the tokenizer.
_SEPARATORS = range(0x1C, 0x20)
_ASCII = [chr(code) for code in range(128)]


@dataclass(frozen=True, slots=True)
class AsciiTokenizer:
    """A tokenizer with a shorter way for ASCII texts, and the same tokens.

    Attributes:
        whole: the tokenizer of all texts.
        short: the same without the normalizers that `table` stands for, and
            perhaps without the splitting into words.
        table: the answer of these normalizers to each ASCII character.
        spaced: whether `short` needs one space between words and none around them.
    """

    whole: Tokenizer
    short: Tokenizer
    table: dict[int, str]
    spaced: bool = False

    def encode_batch(self, texts: Sequence[str]) -> Sequence[Encoding]:
        """Encodes texts without control tokens and offsets; raises as Tokenizer.encode_batch_fast does."""
        plain = list(map(self._translate, texts))
        if None not in plain:
            return self.short.encode_batch_fast(plain, add_special_tokens=False)
        long = [text for text, translated in zip(texts, plain, strict=True) if translated is None]
        short = [translated for translated in plain if translated is not None]
        longs: Iterator[Encoding] = iter(self.whole.encode_batch_fast(long, add_special_tokens=False))
        shorts: Iterator[Encoding] = iter(self.short.encode_batch_fast(short, add_special_tokens=False))
        return [next(longs if translated is None else shorts) for translated in plain]

    def encode(self, text: str) -> Encoding:
        """Encodes one text without control tokens; raises as Tokenizer.encode does."""
        translated = self._translate(text)
        if translated is None:
            return self.whole.encode(text, add_special_tokens=False)
        return self.short.encode(translated, add_special_tokens=False)

    def _translate(self, text: str) -> str | None:
        """Normalizes a text by the table; None where the table is not enough."""
        if not text.isascii() or "\r" in text:
            return None
        translated = text.translate(self.table)
        if len(translated) != len(text):
            return None
        return " ".join(translated.split()) if self.spaced else translated


def ascii_tokenizer(tokenizer: Tokenizer) -> AsciiTokenizer | None:
    """Makes the shorter way of a tokenizer without visible added tokens; None if it has none."""
    steps = list(_steps(tokenizer.normalizer))
    unknown = [type(step).__name__ not in CHARACTERWISE for step in steps]
    known = (*unknown, True).index(True)
    first, rest = normalizers.Sequence(steps[:known]), steps[known:]
    table = {ord(character): first.normalize_str(character) for character in _ASCII}
    if not known or any(len(answer) > 1 for answer in table.values()) or not _holds(first, table):
        return None
    short = Tokenizer(tokenizer.model)  # shares the vocabulary
    short.normalizer = normalizers.Sequence(rest)
    marking = _marking(tokenizer.pre_tokenizer, table) if all(map(_keeps_words, rest)) else None
    if marking is not None:
        short.pre_tokenizer = marking
        table |= {code: "" for code in _SEPARATORS if table[code].isspace()}
    elif tokenizer.pre_tokenizer is not None:
        short.pre_tokenizer = tokenizer.pre_tokenizer
    return AsciiTokenizer(tokenizer, short, table, spaced=marking is not None)


def _steps(normalizer: Any) -> Iterator[Any]:
    """Yields the normalizers of which one consists."""
    if isinstance(normalizer, normalizers.Sequence):
        for index in range(len(normalizer)):
            yield from _steps(normalizer[index])
    elif normalizer is not None:
        yield normalizer


def _holds(normalizer: Any, table: dict[int, str]) -> bool:
    """Tells whether the table is right for every two neighbours, since Precompiled may hold any rule."""
    single = [character for character in _ASCII if character != "\r"]
    pairs = "".join(one + other for one in single for other in single)
    return bool(normalizer.normalize_str(pairs) == pairs.translate(table))


def _keeps_words(normalizer: Any) -> bool:
    """Tells whether a normalizer does nothing to words with one space between them, and none around."""
    if isinstance(normalizer, normalizers.Strip):
        return True
    return isinstance(normalizer, normalizers.Replace) and keeps_letters(
        json.loads(normalizer.__getstate__())
    )


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
