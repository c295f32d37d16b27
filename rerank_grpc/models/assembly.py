"""Puts the parts of a model together."""

from __future__ import annotations

from typing import TypeAlias

from rerank_grpc.errors import ModelLoadError
from rerank_grpc.evidence.facts import Answers, Kind
from rerank_grpc.models.base import ModelCard
from rerank_grpc.models.encoders import POOLS, BiEncoder, Body, CrossEncoder, Head, Pool
from rerank_grpc.models.heads import Unit
from rerank_grpc.models.late import LateEncoder

Encoder: TypeAlias = CrossEncoder | BiEncoder | LateEncoder


def assembled(card: ModelCard, body: Body, pool: Pool, head: Head | None) -> Encoder:
    """Makes a model of the card's kind; `head` maps pooled rows to what it gives, None leaves them."""
    match card.kind:
        case Kind.BI_ENCODER:
            return BiEncoder(card, body, pool, head)
        case Kind.LATE_INTERACTION:
            return LateEncoder(card, body, head or Unit({}))
    assert head is not None
    return CrossEncoder(card, body, pool, head)


def rows_of(model: Encoder) -> BiEncoder:
    """Makes a model of the body alone, which gives one row for each sequence."""
    pool = POOLS["mean"] if isinstance(model, LateEncoder) else model.pool
    return BiEncoder(model.card, model.body, pool)


def answer_ids(answers: Answers) -> tuple[int, ...]:
    """Lists the tokens whose logits are the score: one, or that which counts and that which is subtracted."""
    return (answers.true,) if answers.false is None else (answers.true, answers.false)


def check_expansion(card: ModelCard, reason: str) -> None:
    """Raises ModelLoadError for a model whose queries are filled up with tokens that are not attended to.

    Its pass must be one that leaves no keys out: a causal one, or a padded one.
    """
    if card.late is not None and card.late.expanded_tokens and not card.late.attends_expansion:
        raise ModelLoadError(
            f"{card.source}: {card.family} {reason}, and fills queries up with tokens that are not "
            "attended to, which is not supported: use a checkpoint that attends to them"
        )


def unasked(card: ModelCard) -> ModelLoadError:
    """Makes the error for a decoder with a classifier's head, whose files name no prompt."""
    return ModelLoadError(
        f"{card.source}: {card.family} is a decoder, whose files do not say how it is asked: "
        f"'rerank-grpc convert --prompt MODEL {card.source}' writes it, for the MODEL that it was made of"
    )
