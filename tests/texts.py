"""Requests of plain texts, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Encoding

from rerank_grpc.models.base import ModelCard
from rerank_grpc.sequence import Chunk, TokenizedRequest
from rerank_grpc.tokenizer.shortcuts import AsciiTokenizer
from rerank_grpc.tokenizer.tokenizer import Tokenizer, tokenizer_for
from rerank_grpc.types import Document, RerankRequest, Span


def texts_request(query: str, documents: Sequence[str], **options: Any) -> RerankRequest:
    return RerankRequest(query, [Document(text) for text in documents], **options)


def tokenize(tokenizer: Tokenizer, query: str, documents: Sequence[str], **options: Any) -> TokenizedRequest:
    return tokenizer.tokenize(texts_request(query, documents, **options))


def tokenized(card: ModelCard, query: str, documents: Sequence[str], **options: Any) -> TokenizedRequest:
    return tokenize(tokenizer_for(card), query, documents, **options)


def span_of(chunk: Chunk) -> Span:
    """Returns where a chunk of a document that was cut up lies in it."""
    assert chunk.span is not None
    return chunk.span


def characters_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that grows by the length of each text that is read from now on."""
    read: list[int] = []
    plain = AsciiTokenizer.encode_batch

    def encode_batch(tokenizer: AsciiTokenizer, texts: Sequence[str]) -> Sequence[Encoding]:
        read.extend(map(len, texts))
        return plain(tokenizer, texts)

    monkeypatch.setattr(AsciiTokenizer, "encode_batch", encode_batch)
    return read
