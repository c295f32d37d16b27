"""The tokens that surround every document of a request, and those of models without a prompt."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

from rerank_grpc.evidence.facts import AS_WRITTEN, Reading
from rerank_grpc.sequence import TOKEN_BYTES, Prefix, Sequence
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.truncation import NO_ENDS, UNBOUNDED, WHOLE, Cutting, Ends, tokenize
from rerank_grpc.tokenizer.vocabulary import Vocabulary
from rerank_grpc.types import Truncation

# Clients that send few documents per call repeat their query, so recent short ones are kept.
REMEMBERED_QUERIES, REMEMBERED_CHARACTERS = 128, 2_000
# A model whose control tokens and prompts leave less to its texts is refused.
LEAST_FREE_TOKENS = 1


class Frame(NamedTuple):
    """The surroundings of the documents of one request, or of those with the same number of tokens."""

    vocabulary: Vocabulary  # of the documents
    room: int  # the tokens of a document, and of the ends that become tokens with it, that fit
    before: bytes  # the token ids before a document, int32
    after: bytes
    segment_start: int = 0  # the index at which segment B begins; 0 means nowhere
    ends: Ends = NO_ENDS
    strips: bool = False  # whether a document loses the white space around it
    prefix: Prefix | None = None
    query: Sequence | None = None  # the query alone, for models that compare vectors
    query_truncated: bool = False  # whether a part of the query or instruction was left out
    yielding: Yielding | None = None  # None where only documents are cut


class Yielding(NamedTuple):
    """The way in which a long query gives way to documents that do not fit beside all of it."""

    count_to: int  # documents with more tokens are all alike
    frame: Callable[[int], Frame]  # of a document, by the number of its tokens; raises InvalidRequest


class Framing(Protocol):
    """Makes the frames of one model; any number of threads may call it at once."""

    @property
    def accepts_instruction(self) -> bool:
        """Whether the instruction of a request is put into the frame."""

    def frame(self, query: str, instruction: str, truncation: Truncation, pace: Pace) -> Frame:
        """Makes the frame of one request; raises InvalidRequest for a text that may not be cut."""


class PlainFraming:
    """Frames by the tokenizer's own templates: the query stands beside each document, or alone.

    What does not fit is cut as the tokenizers library does it with "longest_first": a query that takes up to
    half of the tokens stays whole, and a longer one leaves to a document what that needs, up to a half.
    """

    accepts_instruction = False

    def __init__(
        self, vocabulary: Vocabulary, max_tokens: int, *, pairs: bool, reading: Reading = AS_WRITTEN
    ) -> None:
        self._vocabulary = vocabulary
        self._template = template = vocabulary.pair if pairs else vocabulary.single
        self._before, self._after = template.prefix.tobytes(), template.suffix.tobytes()
        self._pairs = pairs
        self._segment_start = template.segment_start if reading.token_types else None
        self._room = max(0, max_tokens - template.overhead)
        self._query_ends = Ends.of(vocabulary, reading.query_prefix)
        self._document_ends = Ends.of(vocabulary, reading.document_prefix)
        self._remembered = functools.lru_cache(REMEMBERED_QUERIES)(self._tokenize)

    @property
    def free_tokens(self) -> int:
        """The tokens that a query and a document share, or that each of both has."""
        ends = self._query_ends.tokens, self._document_ends.tokens
        return self._room - (sum(ends) if self._pairs else max(ends))

    def frame(self, query: str, instruction: str, truncation: Truncation, pace: Pace) -> Frame:
        """Frames a document by control tokens and, in a pair, the query; there is no instruction."""
        if len(query) <= REMEMBERED_CHARACTERS:
            ids, truncated = self._remembered(query, self._room, truncation)
        else:
            ids, truncated = self._tokenize(query, self._room, truncation, pace)
        if not self._pairs:
            before, after = self._before, self._after
            alone = Sequence(before + ids + after)
            return Frame(
                self._vocabulary,
                self._room,
                before,
                after,
                ends=self._document_ends,
                query=alone,
                query_truncated=truncated,
            )
        frame = self._beside(ids, truncated)
        if len(ids) // TOKEN_BYTES <= self._room // 2:
            return frame
        return frame._replace(yielding=self._yielding(query, ids, truncated, truncation, pace))

    def _beside(self, ids: bytes, truncated: bool) -> Frame:
        """Frames a document beside a query's tokens."""
        template, query_tokens, start = self._template, len(ids) // TOKEN_BYTES, self._segment_start
        segment_start = 0 if start is None else len(template.prefix) + query_tokens + start
        return Frame(
            self._vocabulary,
            max(0, self._room - query_tokens),
            self._before + ids + template.middle.tobytes(),
            self._after,
            segment_start,
            self._document_ends,
            query_truncated=truncated,
        )

    def _yielding(
        self, query: str, ids: bytes, truncated: bool, truncation: Truncation, pace: Pace
    ) -> Yielding:
        """Cuts a query that takes more than half of the tokens, by those of a document."""
        half, room, query_tokens = self._room // 2, self._room, len(ids) // TOKEN_BYTES
        if truncated:
            text = self._query_ends.lead + query
            (whole,) = tokenize(self._vocabulary, [text], lambda _: "query", WHOLE, pace)
            query_tokens = len(whole.chunks[0][0]) // TOKEN_BYTES

        def frame(document_tokens: int) -> Frame:
            if document_tokens <= half:
                kept = room - document_tokens
            else:  # the longer of both texts has the odd token
                kept = half if document_tokens >= query_tokens else room - half
            return self._beside(*self._tokenize(query, kept, truncation, pace))

        return Yielding(query_tokens, frame)

    def _tokenize(
        self, query: str, room: int, truncation: Truncation, pace: Pace = UNHURRIED
    ) -> tuple[bytes, bool]:
        """Returns the query's token ids as int32, and whether others were left out."""
        ends = self._query_ends
        cutting = Cutting(room, UNBOUNDED, truncation, ends)
        (tokenized,) = tokenize(self._vocabulary, [ends.lead + query], lambda _: "query", cutting, pace)
        return tokenized.chunks[0][0], tokenized.truncated
