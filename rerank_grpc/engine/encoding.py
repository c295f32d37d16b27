"""What the tokenizer makes of a request: sequences, and how they belong to documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rerank_grpc.engine.batch import Sequence
from rerank_grpc.types import Span

# The next two are made for every document: a named tuple is frozen like a dataclass, at a third of its cost.


class EncodedChunk(NamedTuple):
    """One window of a document: which of the request's sequences holds it.

    Attributes:
        sequence: an index into EncodedRequest.sequences.
        tokens: tokens of the document in it, without query and special tokens.
        span: where in the document's text it lies; None where it is the only window.
    """

    sequence: int
    tokens: int
    span: Span | None = None


class EncodedDocument(NamedTuple):
    """A document's windows (one, unless chunking was asked for), in text order."""

    chunks: tuple[EncodedChunk, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """All sequences of one request.

    Attributes:
        sequences: what the engine has to run, in order. Documents with equal
            text share a sequence.
        documents: one for each document of the request.
        query: for a bi-encoder, the index of the query's sequence; None where
            each sequence holds the query itself.
        query_truncated: whether a part of the query was left out.
    """

    sequences: tuple[Sequence, ...]
    documents: tuple[EncodedDocument, ...]
    query: int | None
    query_truncated: bool
