"""Reads texts no further than the model can see, and cuts them into chunks that fit."""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as ListOf
from typing import NamedTuple, TypeAlias

import numpy as np
from tokenizers import Encoding

from rerank_grpc.errors import InternalError, InvalidRequest
from rerank_grpc.sequence import TOKEN_BYTES
from rerank_grpc.tokenizer.pace import Pace
from rerank_grpc.tokenizer.vocabulary import Vocabulary
from rerank_grpc.types import RerankRequest, Span, Truncation

# Names the field of a text by its index, for errors.
Field: TypeAlias = Callable[[int], str]

# More tokens than any text has.
UNBOUNDED = 1 << 31
# Two chunks share one part in this many, so a sentence that one cuts stands whole in the other.
OVERLAP = 8
# Characters per token of the first reading of a text, and the growth of each further one.
CHARACTERS_PER_TOKEN, GROWTH = 8, 4
# The characters before that limit in which a cut is searched that changes no token.
CUT_SEARCH = 256
# Tokens next to such a cut are never used, as a second line of defence.
CUT_MARGIN = 8
# Up to this many tokens, a set is faster than NumPy.
SMALL = 256


class Cutting(NamedTuple):
    """Limits of a text: `free_tokens` of a text fit one chunk, `max_tokens` are used in all its chunks."""

    free_tokens: int
    max_tokens: int
    truncation: Truncation

    @classmethod
    def of(cls, request: RerankRequest, free_tokens: int) -> Cutting:
        """Reads how a request's documents are cut; 0 tokens per document mean all."""
        most = request.max_tokens_per_document or UNBOUNDED
        reach = free_tokens = min(free_tokens, most)
        if request.max_chunks_per_document > 1:
            reach += (request.max_chunks_per_document - 1) * _stride(free_tokens)
        return cls(free_tokens, min(most, reach), request.truncation)

    def chunks(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yields (start, end) of the chunks of tokens `first` to `last`, at most `max_tokens` tokens."""
        stride = _stride(self.free_tokens)
        while first + self.free_tokens < last:
            yield first, first + self.free_tokens
            first += stride
        yield first, last


WHOLE = Cutting(UNBOUNDED, UNBOUNDED, Truncation.END)


def _stride(free_tokens: int) -> int:
    """Counts the tokens from the start of one chunk to the start of the next."""
    return max(1, free_tokens - free_tokens // OVERLAP)


class TokenizedText(NamedTuple):
    """The used tokens of a text; a chunk is its ids as int32 and its place, None if it is the only one."""

    chunks: ListOf[tuple[bytes, Span | None]]
    truncated: bool


def tokenize(
    vocabulary: Vocabulary, texts: ListOf[str], field: Field, cutting: Cutting, pace: Pace
) -> list[TokenizedText]:
    """Tokenizes and cuts texts in as few batches as `pace` allows; raises its error when the call has ended.

    Raises InvalidRequest for a text that is too long and may not be cut, or is
    no Unicode text, and InternalError if one became a control token.
    """
    tokenized: list[TokenizedText] = []
    try:
        for block in pace.blocks(texts):
            start = len(tokenized)
            for text, part, encoding in zip(block, *_read(vocabulary, block, cutting), strict=True):
                ids = encoding.ids
                if len(ids) <= cutting.free_tokens and len(part) == len(text):
                    tokenized.append(TokenizedText([(to_bytes(ids), None)], False))
                else:
                    tokenized.append(_cut(vocabulary, ids, text, part, field(len(tokenized)), cutting))
            _check_control(vocabulary, tokenized[start:])
    except (TypeError, UnicodeError):
        for index, text in enumerate(texts):
            check_unicode(text, field(index))
        raise
    return tokenized


def to_bytes(ids: list[int]) -> bytes:
    """Packs token ids as int32; struct does it in 60 % of array's time."""
    return struct.pack(f"{len(ids)}i", *ids)


def _read(
    vocabulary: Vocabulary, texts: ListOf[str], cutting: Cutting
) -> tuple[ListOf[str], ListOf[Encoding]]:
    """Tokenizes the part of each text that holds the tokens in use, exactly as in the whole text.

    Returns the parts and their encodings. A part that is not the whole text has more tokens than are used.
    Raises TypeError or UnicodeError for a lone surrogate, wherever in a text it stands.
    """
    encode, enough = vocabulary.batches.encode_batch, cutting.max_tokens + CUT_MARGIN
    limit = enough * CHARACTERS_PER_TOKEN
    if max(map(len, texts), default=0) <= limit:
        return texts, encode(texts)
    parts = [_part_of_text(vocabulary, text, limit, cutting.truncation) for text in texts]
    for text in texts:
        if len(text) > limit:
            text.encode()
    encodings = list(encode(parts))
    short: Iterable[int] = range(len(texts))
    while short := [at for at in short if len(parts[at]) < len(texts[at]) and len(encodings[at]) < enough]:
        limit *= GROWTH
        for at in short:
            parts[at] = _part_of_text(vocabulary, texts[at], limit, cutting.truncation)
        for at, encoding in zip(short, encode([parts[at] for at in short]), strict=True):
            encodings[at] = encoding
    return parts, encodings


def _part_of_text(vocabulary: Vocabulary, text: str, limit: int, truncation: Truncation) -> str:
    """Returns the first (cut from the start: last) `limit` characters of a text at most, or all of it."""
    if len(text) <= limit:
        return text
    if truncation is Truncation.START:
        low = len(text) - limit
        places = range(low, min(low + CUT_SEARCH, len(text)) if vocabulary.cuts_suffix else low)
        return text[_find_cut(text, places, 0) :]
    places = range(limit, max(0, limit - CUT_SEARCH) if vocabulary.cuts_prefix else limit, -1)
    return text[: _find_cut(text, places, len(text))]


def _find_cut(text: str, places: Iterable[int], otherwise: int) -> int:
    """Finds a lone space with a letter or digit on each side that combines with nothing."""
    for at in places:
        if text[at] == " " and 0 < at < len(text) - 1 and _stands_alone(text[at - 1] + text[at + 1]):
            return at
    return otherwise


def _stands_alone(letters: str) -> bool:
    """Tells whether each character is a letter or digit that combines with nothing."""
    return all(
        letter.isalnum() if letter.isascii() else unicodedata.category(letter) in {"Lu", "Ll"}
        for letter in letters
    )


def _cut(
    vocabulary: Vocabulary, ids: list[int], text: str, part: str, field: str, cutting: Cutting
) -> TokenizedText:
    """Cuts a text that does not fit one sequence, or of which only a part was read."""
    used = min(len(ids), cutting.max_tokens)
    truncated = used < len(ids)
    if truncated and cutting.truncation is Truncation.NONE:
        reason = f"has more than the {cutting.max_tokens} tokens that fit"
        raise InvalidRequest.of(field, reason, metadata={"max_tokens": str(cutting.max_tokens)})
    from_start = cutting.truncation is not Truncation.START
    first = 0 if from_start else len(ids) - used
    if used <= cutting.free_tokens:
        return TokenizedText([(to_bytes(ids[first : first + used]), None)], truncated)
    before = 0 if from_start else len(text) - len(part)
    offsets = vocabulary.tokenizer.encode(part, add_special_tokens=False).offsets
    chunks = []
    for start, end in cutting.chunks(first, first + used):
        span = Span(before + offsets[start][0], before + _end_of_marks(part, offsets[end - 1][1]))
        chunks.append((to_bytes(ids[start:end]), span))
    return TokenizedText(chunks, truncated)


def _end_of_marks(text: str, end: int) -> int:
    """Moves the end of a span past marks that normalization has put into the letter before them."""
    while end < len(text) and unicodedata.combining(text[end]):
        end += 1
    return end


def check_unicode(text: str, field: str) -> None:
    """Raises InvalidRequest if a text holds a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest.of(field, "holds a lone surrogate, which is no Unicode text") from None


def _check_control(vocabulary: Vocabulary, tokenized: list[TokenizedText]) -> None:
    """Raises InternalError if a text became a control token; vocabulary.py makes that impossible."""
    packed = b"".join([ids for text in tokenized for ids, _ in text.chunks])
    if len(packed) <= SMALL * TOKEN_BYTES:
        # NumPy releases the GIL, and in a busy server waits to get it back.
        found = not vocabulary.control_ids.isdisjoint(memoryview(packed).cast("i"))
    else:
        found = bool(vocabulary.is_control.take(np.frombuffer(packed, dtype=np.int32)).any())
    if found:
        raise InternalError
