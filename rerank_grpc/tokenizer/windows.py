"""Texts to tokens: read no further than the model can see, cut to what fits, checked."""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Callable, Iterator
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding

from rerank_grpc.errors import InternalError, InvalidRequest
from rerank_grpc.sequence import TOKEN_BYTES
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.vocabulary import Vocabulary
from rerank_grpc.types import Truncation

# Windows of a document overlap by one part in this many, so that what one cuts the next one holds.
OVERLAP = 8
# A text is first read only as far as the model could see at this many characters a token ...
CHARACTERS_PER_TOKEN = 8
# ... and if those made too few tokens, this many times as far.
GROWTH = 4
# How far back from there a place is looked for where a cut changes no token.
CUT_SEARCH = 256
# Tokens next to such a cut are never used, as a second line of defence.
CUT_MARGIN = 8
# So few tokens are looked at faster one by one than by NumPy.
SMALL = 256


@dataclass(frozen=True, slots=True)
class Cutting:
    """How long texts are cut.

    Attributes:
        room: tokens of a text that fit one sequence.
        most: tokens of a text that are used at all.
        truncation: which end is left out.
        chunks: into how many windows a text may be cut.
    """

    room: int
    most: int
    truncation: Truncation
    chunks: int = 1

    @property
    def stride(self) -> int:
        """How far one window begins after the one before it."""
        return max(1, self.room - self.room // OVERLAP)

    @property
    def reach(self) -> int:
        """How many tokens of a text can be used."""
        return min(self.most, self.room + (max(1, self.chunks) - 1) * self.stride)

    def windows(self, used: int) -> Iterator[tuple[int, int]]:
        """Yields (start, end) of the windows over `used` tokens, at most `reach` of them."""
        start = 0
        while start + self.room < used:
            yield start, start + self.room
            start += self.stride
        yield start, used


class Tokens(NamedTuple):
    """The tokens of a text that are used.

    Attributes:
        ids: token ids, packed as int32.
        truncated: whether other tokens were left out.
        spans: where each of the cutting's windows lies in the text, in code
            points; None where all tokens fit one sequence.
    """

    ids: bytes
    truncated: bool
    spans: list[tuple[int, int]] | None = None

    @property
    def length(self) -> int:
        """The number of tokens."""
        return len(self.ids) // TOKEN_BYTES


def tokenize(
    vocabulary: Vocabulary,
    texts: ListOf[str],
    cutting: Cutting,
    field: Callable[[int], str],
    pace: Pace = UNHURRIED,
) -> list[Tokens]:
    """Tokenizes texts in as few batches as `pace` allows, and cuts them; `field` names a text's field.

    Raises:
        InvalidRequest: if a text is too long and may not be cut, or is no
            Unicode text.
        InternalError: if a text became a control token, which is a defect.
        RerankError: whatever `pace` raises when the call has ended.
    """
    tokens: list[Tokens] = []
    for start, block in pace.blocks(texts):
        tokens += _tokenize_block(vocabulary, block, cutting, partial(_shifted, field, start))
    return tokens


def _shifted(field: Callable[[int], str], start: int, index: int) -> str:
    return field(start + index)


def _tokenize_block(
    vocabulary: Vocabulary, texts: ListOf[str], cutting: Cutting, field: Callable[[int], str]
) -> list[Tokens]:
    """Tokenizes texts in one batch, and cuts them."""
    limit = (cutting.reach + CUT_MARGIN) * CHARACTERS_PER_TOKEN
    if max(map(len, texts), default=0) <= limit:
        encodings = encode_batch(vocabulary, texts, field)
        parts = texts
    else:
        parts, encodings = read_parts(vocabulary, texts, cutting, limit, field)
    tokens, room = [], cutting.room
    for index, encoding in enumerate(encodings):
        ids = encoding.ids
        if len(ids) <= room and parts[index] is texts[index]:
            tokens.append(Tokens(pack(ids), False))
        else:
            tokens.append(_cut(vocabulary, ids, texts[index], parts[index], cutting, field(index)))
    _check_control(vocabulary, tokens)
    return tokens


def pack(ids: list[int]) -> bytes:
    """Packs token ids as int32; struct does it in 60 % of array's time."""
    return struct.pack(f"{len(ids)}i", *ids)


def encode_batch(vocabulary: Vocabulary, texts: ListOf[str], field: Callable[[int], str]) -> ListOf[Encoding]:
    """Runs the Rust tokenizer; raises InvalidRequest for what is no Unicode text."""
    try:
        return vocabulary.encode_batch(texts)
    except (TypeError, UnicodeError):
        for index, text in enumerate(texts):
            check_unicode(text, field(index))
        raise


def read_parts(
    vocabulary: Vocabulary,
    texts: ListOf[str],
    cutting: Cutting,
    limit: int,
    field: Callable[[int], str],
) -> tuple[list[str], list[Encoding]]:
    """Tokenizes so much of each text that what is used of it is exactly what the whole would give.

    Returns the part of each text that was read, and its encoding. A part that
    is not the whole text has more tokens than are used.
    """
    parts = [_part(vocabulary, text, limit, cutting.truncation) for text in texts]
    for index, (text, part) in enumerate(zip(texts, parts, strict=True)):
        if len(part) < len(text):
            check_unicode(text, field(index))
    encodings = list(encode_batch(vocabulary, parts, field))
    enough = cutting.reach + CUT_MARGIN
    short = list(range(len(texts)))
    while True:
        short = [
            index
            for index in short
            if len(parts[index]) < len(texts[index]) and len(encodings[index]) < enough
        ]
        if not short:
            return parts, encodings
        limit *= GROWTH
        for index in short:
            parts[index] = _part(vocabulary, texts[index], limit, cutting.truncation)
        again = encode_batch(vocabulary, [parts[index] for index in short], field)
        for index, encoding in zip(short, again, strict=True):
            encodings[index] = encoding


def _cut(
    vocabulary: Vocabulary, ids: list[int], text: str, part: str, cutting: Cutting, field: str
) -> Tokens:
    """Keeps the tokens that are used of a text which does not fit one sequence."""
    used = min(len(ids), cutting.reach)
    truncated = used < len(ids)
    from_start = cutting.truncation is not Truncation.START
    if truncated and cutting.truncation is Truncation.NONE:
        raise InvalidRequest.of(
            field,
            f"has more than the {cutting.reach} tokens that fit",
            metadata={"max_tokens": str(cutting.reach)},
        )
    place = slice(0, used) if from_start else slice(len(ids) - used, len(ids))
    packed = pack(ids[place])
    if used <= cutting.room:
        return Tokens(packed, truncated)
    offset = 0 if from_start else len(text) - len(part)
    offsets = vocabulary.tokenizer.encode(part, add_special_tokens=False).offsets[place]
    spans = [(offsets[start][0], offsets[end - 1][1]) for start, end in cutting.windows(used)]
    return Tokens(
        packed, truncated, [(offset + start, offset + _mark_end(part, end)) for start, end in spans]
    )


def _mark_end(text: str, end: int) -> int:
    """Moves the end of a span past marks which normalization has put into the letter before them."""
    while end < len(text) and unicodedata.combining(text[end]):
        end += 1
    return end


def _part(vocabulary: Vocabulary, text: str, limit: int, truncation: Truncation) -> str:
    """The first (cut from the start: last) part of a text, of at most `limit` characters; or all of it."""
    if len(text) <= limit:
        return text
    if truncation is Truncation.START:
        low = len(text) - limit
        places = range(low, min(low + CUT_SEARCH, len(text)))
        return next((text[at:] for at in places if vocabulary.splits_suffix and _splits(text, at)), text)
    places = range(limit, max(0, limit - CUT_SEARCH), -1)
    return next((text[:at] for at in places if vocabulary.splits_at_spaces and _splits(text, at)), text)


def _splits(text: str, at: int) -> bool:
    """Whether a lone space stands there, with a letter or digit on each side that combines with nothing."""
    return text[at] == " " and 0 < at < len(text) - 1 and _plain(text[at - 1]) and _plain(text[at + 1])


def _plain(character: str) -> bool:
    if character.isascii():
        return character.isalnum()
    return unicodedata.category(character) in {"Lu", "Ll"}


def check_unicode(text: str, field: str) -> None:
    """Raises InvalidRequest if a text holds a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest.of(field, "holds a lone surrogate, which is no Unicode text") from None


def _check_control(vocabulary: Vocabulary, tokens: list[Tokens]) -> None:
    """Raises InternalError if a text became a control token; vocabulary.py makes that impossible."""
    packed = b"".join([part.ids for part in tokens])
    if len(packed) <= SMALL * TOKEN_BYTES:
        # NumPy lets go of the interpreter, and in a busy server waits to get it back.
        found = not vocabulary.control_ids.isdisjoint(memoryview(packed).cast("i"))
    else:
        found = bool(vocabulary.is_control.take(np.frombuffer(packed, dtype=np.int32)).any())
    if found:
        raise InternalError
