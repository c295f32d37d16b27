"""What texts become: sequences of tokens, and how they belong to a request's documents."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rerank_grpc.types import Span

TOKEN_BYTES = 4  # token ids travel as int32, native byte order

# What a model makes of a sequence: a logit, or a vector  # [hidden] float32
Output: TypeAlias = float | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Prefix:
    """Tokens that stand before many sequences and see nothing of them, so that they are computed once.

    Equal prefixes are one. What a model has computed of a prefix lives as long
    as the object itself, which is as long as a request or the encoder holds it.

    Attributes:
        ids: its own token ids, packed as int32.
        before: the prefix which it continues.
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
    """One run of tokens to be scored: a pair for a cross-encoder, a text for a bi-encoder.

    Equal sequences of one model score the same, so this is also the key under
    which identical work is found; bytes hash once and compare fast. Its length
    is counted in tokens. (A named tuple is frozen at a third of a dataclass's cost.)

    Attributes:
        ids: token ids, packed as int32.
        split: where segment B begins (token_type_ids 1); 0 means nowhere.
        prefix: what stands before it, in a decoder; its length is not the
            sequence's.
    """

    ids: bytes
    split: int = 0
    prefix: Prefix | None = None

    @classmethod
    def of(cls, ids: Iterable[int], split: int = 0) -> Sequence:
        """Packs token ids."""
        return cls(array("i", ids).tobytes(), split)

    def __len__(self) -> int:
        return len(self.ids) // TOKEN_BYTES

    def token_ids(self) -> list[int]:
        """Unpacks the token ids."""
        return array("i", self.ids).tolist()

    def whole(self) -> Sequence:
        """Returns what it scores like: itself with its prefix's tokens among its own."""
        chain = self.prefix.chain() if self.prefix else ()
        return Sequence(b"".join([*(prefix.ids for prefix in chain), self.ids]), self.split)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Sequences that go through the model together, in this order, unpadded."""

    sequences: tuple[Sequence, ...]

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all sequences, without their prefixes."""
        return sum(len(sequence) for sequence in self.sequences)


# The next two exist for every document: a named tuple is frozen like a dataclass, at a third of its cost.


class Chunk(NamedTuple):
    """One part of a document that fits the model.

    Attributes:
        sequence: the index of its sequence in TokenizedRequest.sequences.
        tokens: its own tokens, without query and control tokens.
        span: its place in the document's text; None for an only chunk.
    """

    sequence: int
    tokens: int
    span: Span | None = None


class TokenizedDocument(NamedTuple):
    """A document's chunks in text order; one, unless the request allows more."""

    chunks: tuple[Chunk, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class TokenizedRequest:
    """All sequences of one request.

    Attributes:
        sequences: the engine's work, in order. Documents with equal text share
            theirs.
        documents: one for each document of the request.
        query: the index of the query's sequence, for a bi-encoder; None where
            each sequence holds the query itself.
        query_truncated: whether a part of the query was left out.
    """

    sequences: tuple[Sequence, ...]
    documents: tuple[TokenizedDocument, ...]
    query: int | None
    query_truncated: bool
