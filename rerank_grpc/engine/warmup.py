"""Runs a new engine before its first call, so that caches are warm and its rate is known."""

from __future__ import annotations

from rerank_grpc.engine.engine import Engine
from rerank_grpc.engine.tokenizer import Encoder
from rerank_grpc.models.base import ModelCard

QUERY = "how does a reranker score a document?"
WORDS = "It reads the query and the document together and gives the pair one number. "


def warm_up(engine: Engine, encoder: Encoder, card: ModelCard) -> None:
    """Scores a few documents of several lengths, up to the longest the model takes.

    Raises whatever an ordinary call would, so that a model that cannot score
    is never READY.
    """
    for tokens in (16, 128, card.max_tokens):
        documents = [f"{number} {WORDS * (tokens // 16)}" for number in range(4)]
        encoded = encoder.encode(QUERY, documents)
        request = engine.submit(encoded.sequences)
        for _ in request.completed():
            pass
        engine.release(request)
