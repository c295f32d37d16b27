"""Tokenizes ASCII text without the steps before the model that Python does in less time.

What the usual normalizers do to ASCII is done one character after another:
lower case, a space for a tab. So it is asked once for each of the 128, and
str.translate does the rest. A text for which that is not enough (other
scripts, a line's end of two characters, characters that are left out) goes the
long way. Where words are split at white space and then marked, as XLM-R's are,
str.split leaves one space between them, at which marking splits by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer, normalizers, pre_tokenizers

from rerank_grpc.tokenizer.cuts import is_local

# Normalizers that make of an ASCII character the same whatever stands beside it, "\r\n" apart.
_CHARACTERWISE = (
    normalizers.BertNormalizer,
    normalizers.Lowercase,
    normalizers.NFC,
    normalizers.NFD,
    normalizers.NFKC,
    normalizers.NFKD,
    normalizers.Nmt,
    normalizers.Precompiled,
    normalizers.StripAccents,
)
_SEPARATORS = range(0x1C, 0x20)
_ASCII = [chr(code) for code in range(128)]


@dataclass(frozen=True, slots=True)
class AsciiTokenizer:
    """A tokenizer with a shorter way for ASCII texts; the tokens are the same.

    Attributes:
        whole: for all texts.
        short: the same without the normalizers that `table` stands for, and perhaps the splitting into words.
        table: what these make of each ASCII character.
        spaced: whether `short` wants one space between words and none around them.
    """

    whole: Tokenizer
    short: Tokenizer
    table: dict[int, str]
    spaced: bool = False

    def encode_batch(self, texts: Sequence[str]) -> Sequence[Encoding]:
        """Encodes texts without control tokens and offsets; raises as Tokenizer.encode_batch_fast does."""
        plain = [self._translate(text) for text in texts]
        short = [text for text in plain if text is not None]
        if len(short) == len(texts):
            return self.short.encode_batch_fast(short, add_special_tokens=False)
        rest = [text for text, translated in zip(texts, plain, strict=True) if translated is None]
        short_ones: Iterator[Encoding] = iter(self.short.encode_batch_fast(short, add_special_tokens=False))
        others: Iterator[Encoding] = iter(self.whole.encode_batch_fast(rest, add_special_tokens=False))
        return [next(others if translated is None else short_ones) for translated in plain]

    def encode(self, text: str) -> Encoding:
        """Encodes one text without control tokens; raises as Tokenizer.encode does."""
        translated = self._translate(text)
        if translated is None:
            return self.whole.encode(text, add_special_tokens=False)
        return self.short.encode(translated, add_special_tokens=False)

    def _translate(self, text: str) -> str | None:
        """What the normalizers make of a text; None where the table does not tell."""
        if not text.isascii() or "\r" in text:
            return None
        translated = text.translate(self.table)
        if len(translated) != len(text):
            return None
        return " ".join(translated.split()) if self.spaced else translated


def ascii_tokenizer(tokenizer: Tokenizer) -> AsciiTokenizer | None:
    """Makes the shorter way of a tokenizer in which no text meets an added token; None if it has none."""
    steps = list(_steps(tokenizer.normalizer))
    known = next(
        (place for place, step in enumerate(steps) if not isinstance(step, _CHARACTERWISE)), len(steps)
    )
    if not known:
        return None
    first = normalizers.Sequence(steps[:known])
    table = {ord(character): first.normalize_str(character) for character in _ASCII}
    if any(len(made) > 1 for made in table.values()) or not _holds(first, table):
        return None
    short = Tokenizer(tokenizer.model)  # shares the vocabulary
    short.normalizer = normalizers.Sequence(steps[known:])
    if tokenizer.pre_tokenizer is not None:
        short.pre_tokenizer = tokenizer.pre_tokenizer
    leaves_words = all(map(_leaves_words, steps[known:]))
    marking = _marking(tokenizer.pre_tokenizer, table) if leaves_words else None
    if marking is not None:
        short.pre_tokenizer = marking
        # White space to str.split, but not to the tokenizer.
        table |= {code: "" for code in _SEPARATORS if table[code].isspace()}
    return AsciiTokenizer(tokenizer, short, table, spaced=marking is not None)


def _marking(pre_tokenizer: Any, table: dict[int, str]) -> pre_tokenizers.PreTokenizer | None:
    """The Metaspace of a tokenizer that splits at white space, then puts it before each word; else None.

    No ASCII text may hold the mark by itself.
    """
    if not isinstance(pre_tokenizer, pre_tokenizers.Sequence):
        return None
    steps = json.loads(pre_tokenizer.__getstate__())["pretokenizers"]
    if [step["type"] for step in steps] != ["WhitespaceSplit", "Metaspace"]:
        return None
    marking = pre_tokenizer[1]
    apart = not marking.replacement.isascii() and marking.replacement not in table.values()
    return marking if apart and marking.prepend_scheme == "always" and marking.split else None


def _leaves_words(normalizer: Any) -> bool:
    """Whether a normalizer does nothing to words with one space between them, and none around."""
    if isinstance(normalizer, normalizers.Strip):
        return True
    return isinstance(normalizer, normalizers.Replace) and is_local(json.loads(normalizer.__getstate__()))


def _holds(normalizer: Any, table: dict[int, str]) -> bool:
    """Whether the table is right for every two characters side by side: Precompiled may hold anything."""
    single = [character for character in _ASCII if character != "\r"]
    pairs = "".join(one + other for one in single for other in single)
    return bool(normalizer.normalize_str(pairs) == pairs.translate(table))


def _steps(normalizer: Any) -> Iterator[Any]:
    """The normalizers that come one after another."""
    if isinstance(normalizer, normalizers.Sequence):
        for place in range(len(normalizer)):
            yield from _steps(normalizer[place])
    elif normalizer is not None:
        yield normalizer
