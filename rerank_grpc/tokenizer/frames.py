"""The tokens that surround every document of a request, by the kind of model."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

import tokenizers

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.models.prompts import Prompt
from rerank_grpc.sequence import TOKEN_BYTES, Prefix, Sequence
from rerank_grpc.tokenizer.pace import UNHURRIED, Pace
from rerank_grpc.tokenizer.truncation import WHOLE, Cutting, check_unicode, to_bytes, tokenize
from rerank_grpc.tokenizer.vocabulary import Vocabulary
from rerank_grpc.types import Truncation

# Clients that send few documents per call repeat their query, so recent short ones are kept.
REMEMBERED_QUERIES, REMEMBERED_CHARACTERS = 128, 2_000
# A prompt that leaves fewer tokens to query and document is refused.
LEAST_FREE_TOKENS = 32


class Frame(NamedTuple):
    """The surroundings of every document of one request."""

    free_tokens: int  # the number of a document's tokens that fit
    before: bytes  # the token ids before a document, int32
    after: bytes
    segment_start: int = 0  # the index at which segment B begins; 0 means nowhere
    lead: str = ""  # a text that each document begins with
    prefix: Prefix | None = None
    query: Sequence | None = None  # the query alone, for models that compare vectors
    query_truncated: bool = False  # whether a part of the query or instruction was left out


class Framing(Protocol):
    """Makes the frames of one model; any number of threads may call it at once."""

    @property
    def accepts_instruction(self) -> bool:
        """Whether the instruction of a request is put into the frame."""

    def frame(self, query: str, instruction: str, truncation: Truncation, pace: Pace) -> Frame:
        """Makes the frame of one request; raises InvalidRequest for a text that may not be cut."""


class PlainFraming:
    """Frames without a prompt: the query, at most half the tokens, stands beside each document or alone."""

    accepts_instruction = False

    def __init__(self, vocabulary: Vocabulary, max_tokens: int, *, pairs: bool) -> None:
        self._vocabulary = vocabulary
        self._template = template = vocabulary.pair if pairs else vocabulary.single
        self._before, self._after = template.prefix.tobytes(), template.suffix.tobytes()
        self._pairs = pairs
        self._max_query_tokens = max_tokens // 2
        self._free_tokens = max(0, max_tokens - template.overhead)
        self._remembered = functools.lru_cache(REMEMBERED_QUERIES)(self._tokenize)

    def frame(self, query: str, instruction: str, truncation: Truncation, pace: Pace) -> Frame:
        """Frames a document by control tokens and, in a pair, the query; there is no instruction."""
        if len(query) <= REMEMBERED_CHARACTERS:
            ids, truncated = self._remembered(query, truncation)
        else:
            ids, truncated = self._tokenize(query, truncation, pace)
        before, after, template = self._before, self._after, self._template
        if not self._pairs:
            alone = Sequence(before + ids + after)
            return Frame(self._free_tokens, before, after, query=alone, query_truncated=truncated)
        query_tokens, start = len(ids) // TOKEN_BYTES, template.segment_start
        free_tokens = max(0, self._free_tokens - query_tokens)
        before += ids + template.middle.tobytes()
        segment_start = 0 if start is None else len(template.prefix) + query_tokens + start
        return Frame(free_tokens, before, after, segment_start, query_truncated=truncated)

    def _tokenize(self, query: str, truncation: Truncation, pace: Pace = UNHURRIED) -> tuple[bytes, bool]:
        """Returns the query's token ids as int32, and whether others were left out."""
        cutting = Cutting(self._max_query_tokens, self._max_query_tokens, truncation)
        (tokenized,) = tokenize(self._vocabulary, [query], lambda _: "query", cutting, pace)
        return tokenized.chunks[0][0], tokenized.truncated


class PromptFraming:
    """Frames of language models: a prompt, whose tokens before the document are a shared prefix.

    Of the tokens that the prompt leaves free, the query gets at most a half and the instruction a quarter.
    """

    def __init__(
        self, vocabulary: Vocabulary, prompt: Prompt, tokenizer_file: Path, *, max_tokens: int
    ) -> None:
        self._vocabulary = vocabulary
        self._prompt = prompt
        self.accepts_instruction = bool(prompt.instruction)
        # In the model's own tokenizer control tokens are recognised, as the prompt's texts need.
        original = tokenizers.Tokenizer.from_file(str(tokenizer_file))
        system, self._suffix = _ids_of(prompt.system, original), _ids_of(prompt.suffix, original)
        self._system = Prefix(system)
        # Tokens between system and suffix, and those of them that the prompt's own words leave free.
        self._inner_tokens = max_tokens - (len(system) + len(self._suffix)) // TOKEN_BYTES
        self._free_tokens = self._inner_tokens - len(self._ids("", "", UNHURRIED)) // TOKEN_BYTES
        if self._free_tokens < LEAST_FREE_TOKENS:
            raise ModelLoadError(f"{tokenizer_file.parent}: {max_tokens} tokens are too few for its prompt")
        self._prefixes: WeakValueDictionary[bytes, Prefix] = WeakValueDictionary()

    def frame(self, query: str, instruction: str, truncation: Truncation, pace: Pace) -> Frame:
        """Frames a document by the prompt; requests with equal texts at the same time share a prefix."""
        check_unicode(instruction, "instruction")
        before_document, truncated = self._before_document(query, instruction, truncation, pace)
        prefix = self._prefixes.setdefault(before_document, Prefix(before_document, self._system))
        free_tokens = max(0, self._inner_tokens - len(prefix))
        return Frame(free_tokens, b"", self._suffix, 0, self._prompt.lead, prefix, query_truncated=truncated)

    def _before_document(
        self, query: str, instruction: str, truncation: Truncation, pace: Pace
    ) -> tuple[bytes, bool]:
        """Tokenizes the text between system and document, and tells whether it was cut."""
        ids, free = self._ids(query, instruction, pace), self._free_tokens
        if len(ids) // TOKEN_BYTES <= self._inner_tokens - free + free // 4:
            return ids, False
        query, query_cut = self._shorten(query, free // 2, truncation, "query", pace)
        instruction, instruction_cut = self._shorten(instruction, free // 4, truncation, "instruction", pace)
        if not query_cut and not instruction_cut:
            return ids, False
        return self._ids(query, instruction, pace), True

    def _ids(self, query: str, instruction: str, pace: Pace) -> bytes:
        texts = self._prompt.filled(query, instruction)
        tokenized = tokenize(self._vocabulary, texts, lambda _: "query", WHOLE, pace)
        return b"".join([ids for text in tokenized for ids, _ in text.chunks])

    def _shorten(
        self, text: str, most: int, truncation: Truncation, field: str, pace: Pace
    ) -> tuple[str, bool]:
        """Cuts a text to about `most` tokens, and tells whether; raises InvalidRequest if it may not."""
        cutting = Cutting(most, most, truncation)
        (tokenized,) = tokenize(self._vocabulary, [text], lambda _: field, cutting, pace)
        if not tokenized.truncated:
            return text, False
        offsets = self._vocabulary.tokenizer.encode(text, add_special_tokens=False).offsets
        if truncation is Truncation.START:
            return text[offsets[-most][0] :], True
        return text[: offsets[most - 1][1]], True


def _ids_of(texts: tuple[str, ...], original: tokenizers.Tokenizer) -> bytes:
    return b"".join([to_bytes(original.encode(text, add_special_tokens=False).ids) for text in texts])
