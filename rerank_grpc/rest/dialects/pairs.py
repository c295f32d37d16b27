"""Pairs of texts, asked for by one request for each query."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rerank_grpc.errors import InvalidRequest
from rerank_grpc.rest.dialects import fields
from rerank_grpc.rest.dialects.base import Decoded, Json, Reply
from rerank_grpc.types import Document, RerankRequest

Pair = tuple[str, str]


def read(name: str, value: Any) -> list[Pair]:
    """Reads a list of pairs of texts."""
    fields.check_count(name, len(value))
    return [_pair(f"{name}[{index}]", pair) for index, pair in enumerate(value)]


def _pair(name: str, pair: Any) -> Pair:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(t, str) for t in pair):
        raise InvalidRequest.of(name, "must be a pair of texts")
    return pair[0], pair[1]


def decoded(pairs: Iterable[Pair], encode: Callable[[Reply], Json], like: RerankRequest) -> Decoded:
    """Makes one request for each query that differs, with the options of `like`."""
    origins: dict[str, list[int]] = {}
    documents: dict[str, list[Document]] = {}
    for index, (query, text) in enumerate(pairs):
        origins.setdefault(query, []).append(index)
        documents.setdefault(query, []).append(Document(text))
    requests = tuple(like._replace(query=query, documents=own) for query, own in documents.items())
    return Decoded(requests, encode, tuple(map(tuple, origins.values())))
