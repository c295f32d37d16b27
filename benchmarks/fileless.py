"""Models without files: what the loaders share whose models cost a sleep, or nothing."""

from __future__ import annotations

from pathlib import Path

from rerank_grpc.config.settings import ModelSpec
from rerank_grpc.evidence.facts import Kind
from rerank_grpc.kernels.attention import Attention
from rerank_grpc.models.base import ModelCard
from rerank_grpc.types import Scoring


class FilelessLoader:
    """The half of a Loader that asks for files: there are none to bring."""

    def is_local(self, spec: ModelSpec) -> bool:
        return True

    def hub_id(self, spec: ModelSpec) -> str:
        return ""

    def prepare(self, spec: ModelSpec) -> int:
        return 0


def card_of(name: str, revision: str = "") -> ModelCard:
    """Makes the card of a cross-encoder in fp32 of such a name, which is its revision too without another."""
    return ModelCard(
        source=name,
        revision=revision or name,
        family=name,
        scoring=Scoring.SIGMOID,
        activation="sigmoid",
        kind=Kind.CROSS_ENCODER,
        max_tokens=512,
        device="cpu",
        precision="fp32",
        attention=Attention.SDPA,
        tokenizer_file=Path("none"),
    )
