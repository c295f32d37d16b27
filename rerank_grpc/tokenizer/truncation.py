"""Reads texts no further than the model can see, and cuts them into chunks that fit."""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as ListOf
from itertools import takewhile
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


class Ends(NamedTuple):
    """The texts that stand around each document, and become tokens together with it."""

    lead: str = ""
    tail: str = ""
    # Their tokens beside a text that is cut; the lead's without spaces at its end, which a word brings along
    lead_ids: tuple[int, ...] = ()
    tail_ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, vocabulary: Vocabulary, lead: str, tail: str = "") -> Ends:
        """Tokenizes the ends by themselves."""
        if not lead and not tail:
            return NO_ENDS
        first, last = vocabulary.batches.encode_batch([lead.rstrip(" "), tail])
        return cls(lead, tail, tuple(first.ids), tuple(last.ids))

    @property
    def tokens(self) -> int:
        """The number of tokens by themselves."""
        return len(self.lead_ids) + len(self.tail_ids)

    def lead_in(self, ids: ListOf[int]) -> int:
        """Counts the tokens of the lead alone with which ids begin."""
        return _count_equal(ids, self.lead_ids)

    def tail_in(self, ids: ListOf[int]) -> int:
        """Counts the tokens of the tail alone with which ids end."""
        return _count_equal(reversed(ids), reversed(self.tail_ids))

    def count_own(self, ids: bytes) -> int:
        """Counts the tokens between those of the ends."""
        tokens = memoryview(ids).cast("i").tolist()
        return max(0, len(tokens) - self.lead_in(tokens) - self.tail_in(tokens))


def _count_equal(ids: Iterable[int], others: Iterable[int]) -> int:
    """Counts the places up to the first at which two lists differ, or up to the end of one."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, others, strict=False)))


NO_ENDS = Ends()


class Cutting(NamedTuple):
    """Limits of a text: `room` tokens fit beside its frame, its ends included, `most` of its own are used."""

    room: int
    most: int
    truncation: Truncation
    ends: Ends = NO_ENDS
    max_chunks: int = 1

    @classmethod
    def of(cls, request: RerankRequest, room: int, ends: Ends) -> Cutting:
        """Reads how a request's documents are cut; 0 tokens per document mean all."""
        most = request.max_tokens_per_document or UNBOUNDED
        return cls(room, most, request.truncation, ends, max(1, request.max_chunks_per_document))

    def window(self, ends_tokens: int) -> int:
        """Returns how many tokens of a cut text stand in one chunk."""
        return max(0, min(self.most, self.room - ends_tokens))

    def limit(self, window: int) -> int:
        """Returns how many tokens of a text all chunks hold together."""
        return min(self.most, window + (self.max_chunks - 1) * _stride(window))


WHOLE = Cutting(UNBOUNDED, UNBOUNDED, Truncation.END)


def _windows(first: int, last: int, window: int) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of the chunks of tokens `first` to `last`, `window` tokens each at most."""
    while first + window < last:
        yield first, first + window
        first += _stride(window)
    yield first, last


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
    fits = min(cutting.room, cutting.most)
    try:
        for block in pace.blocks(texts):
            start = len(tokenized)
            for text, part, encoding in zip(block, *_read(vocabulary, block, cutting), strict=True):
                ids = encoding.ids
                if len(ids) <= fits and len(part) == len(text):
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
    encode, longest = vocabulary.batches.encode_batch, max(map(len, texts), default=0)
    if longest <= min(cutting.room, cutting.most) * CHARACTERS_PER_TOKEN:  # less than the limit below
        return texts, encode(texts)
    ends = cutting.ends.tokens
    enough = cutting.limit(cutting.window(ends)) + ends + CUT_MARGIN
    limit = enough * CHARACTERS_PER_TOKEN
    if longest <= limit:
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
    ends, whole = cutting.ends, len(part) == len(text)
    at_start = cutting.truncation is not Truncation.START
    lead = ids[: ends.lead_in(ids)] if whole or at_start else list(ends.lead_ids)
    behind = ends.tail_in(ids) if whole or not at_start else 0
    own = len(ids) - (len(lead) if whole or at_start else 0) - behind
    if whole and len(ids) <= cutting.room and own <= cutting.most:
        return TokenizedText([(to_bytes(ids), None)], False)
    window = cutting.window(len(lead) + len(ends.tail_ids))
    limit = cutting.limit(window)
    if own > limit and cutting.truncation is Truncation.NONE:
        reason = f"has more than the {limit} tokens that fit"
        raise InvalidRequest.of(field, reason, metadata={"max_tokens": str(limit)})
    used = min(own, limit)
    if used > window:
        chunks = _chunks(vocabulary, lead, text, part, window, cutting)
    elif at_start:
        chunks = [(to_bytes([*ids[: len(lead) + used], *ends.tail_ids]), None)]
    else:
        chunks = [(to_bytes([*lead, *ids[len(ids) - behind - used :]]), None)]
    return TokenizedText(chunks, own > limit)


def _chunks(
    vocabulary: Vocabulary, lead: list[int], text: str, part: str, window: int, cutting: Cutting
) -> list[tuple[bytes, Span | None]]:
    """Divides a text into overlapping windows, each between the ends."""
    ends, at_start = cutting.ends, cutting.truncation is not Truncation.START
    before = 0 if at_start else len(text) - len(part)
    # Only a part from the start of the text may lack the tail, and only one from its end the lead.
    reaches_end = before + len(part) == len(text)
    own = part[: len(part) - len(ends.tail)] if reaches_end else part
    encoding = vocabulary.tokenizer.encode(own, add_special_tokens=False)
    ids, offsets = encoding.ids, encoding.offsets
    first = 0 if before else len(lead)
    used = min(len(ids) - first, cutting.limit(window))
    first = first if at_start else len(ids) - used
    chunks: list[tuple[bytes, Span | None]] = []
    marks = range(0)
    for start, end in _windows(first, first + used, window):
        last = offsets[end - 1][1]
        if not marks.start <= last <= marks.stop:  # many windows may end within the same marks
            marks = range(last, _end_of_marks(own, last))
        span = Span(before + offsets[start][0], before + marks.stop)
        chunks.append((to_bytes([*lead, *ids[start:end], *ends.tail_ids]), span))
    return chunks


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
