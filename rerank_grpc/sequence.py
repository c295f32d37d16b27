"""The sequences of tokens that texts become, and how they belong to a request's documents."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rerank_grpc.types import Span

TOKEN_BYTES = 4  # token ids travel as int32, native byte order

# The output of a model for a sequence: a logit, a vector  # [size] float32
# or, in late interaction, a matrix of one vector for each token  # [tokens, size] float32
Output: TypeAlias = float | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Prefix:
    """Tokens that stand before many sequences and see nothing of them, so that they are computed once.

    Equal prefixes are one. Keys and values live as long as a request or the tokenizer holds their prefix.
    Its `ids` are int32, without those of the prefix `before` it.
    """

    ids: bytes
    before: Prefix | None = None

    def __len__(self) -> int:
        return len(self.ids) // TOKEN_BYTES

    def chain(self) -> Iterator[Prefix]:
        """Yields the prefixes up to itself, the first one first."""
        if self.before is not None:
            yield from self.before.chain()
        yield self


class Sequence(NamedTuple):
    """One run of tokens to be scored: a pair for a cross-encoder, a text for the other kinds.

    Equal sequences of one model score the same, so a sequence is also the key under which identical work is
    found; bytes hash once and compare fast. Its length is in tokens, without its prefix.
    """

    ids: bytes  # token ids as int32
    segment_start: int = 0  # the token at which the second segment begins; 0 for none
    prefix: Prefix | None = None
    unseen: int = 0  # the number of its last tokens that see the others and are seen by none
    is_query: bool = False  # in late interaction, where all rows of a query are kept

    @classmethod
    def of(cls, ids: Iterable[int], segment_start: int = 0) -> Sequence:
        """Packs token ids."""
        return cls(array("i", ids).tobytes(), segment_start)

    def __len__(self) -> int:
        return len(self.ids) // TOKEN_BYTES

    def whole(self) -> Sequence:
        """Returns the sequence that scores alike: with its prefix's tokens among its own."""
        if self.prefix is None:
            return self
        ids = b"".join([*(prefix.ids for prefix in self.prefix.chain()), self.ids])
        return Sequence(ids, self.segment_start, None, self.unseen, self.is_query)


def count_tokens(sequences: Iterable[Sequence]) -> int:
    """Counts the tokens of sequences, and those of each prefix once."""
    size, seen = 0, set[Prefix]()
    for sequence in sequences:
        size += len(sequence.ids)
        prefix = sequence.prefix
        while prefix is not None and prefix not in seen:
            seen.add(prefix)
            size += len(prefix.ids)
            prefix = prefix.before
    return size // TOKEN_BYTES


# The next two exist for every document: a named tuple is frozen like a dataclass, at a third of its cost.


class Chunk(NamedTuple):
    """One part of a document that fits the model."""

    sequence: int  # the index in TokenizedRequest.sequences
    tokens: int  # without query and control tokens
    span: Span | None = None  # in the document's text; None for an only chunk


class TokenizedDocument(NamedTuple):
    """A document's chunks in text order: one, unless the request allows more; none, if it is not scored."""

    chunks: tuple[Chunk, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class TokenizedRequest:
    """All sequences of one request; documents with equal text share theirs."""

    sequences: tuple[Sequence, ...]
    documents: tuple[TokenizedDocument, ...]
    query: int | None  # the index of a bi-encoder's query; None where each sequence holds the query
    query_truncated: bool
