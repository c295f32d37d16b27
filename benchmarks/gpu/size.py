"""How much is measured: on a card, and in a dry run on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured, of which shapes.

    Attributes:
        base, large, modern, decoder: the shapes in the place of bge-reranker-base, bge-reranker-v2-m3,
            ModernBERT-base and Qwen3-Reranker-0.6B.
        documents: of a call.
        calls: that run at once where the card's rate is measured.
        rounds: samples of each ratio.
        singles: calls one after the other of one document.
        fulls: calls one after the other of all documents.
        seconds: of one sample at saturation.
        rates: pairs a second that are offered, upwards while they are met.
        lower: pairs a second that are offered where the first of them is not met.
        load_seconds: of each rate.
        budget: the batch budget in tokens, 0 for the one that the warm-up finds.
        budgets: those that a profile forces one after the other.
        prepared: seconds after the start within which all steps must be ready.
        limit: seconds for everything.
    """

    device: str
    precision: str
    base: str
    large: str
    modern: str
    decoder: str
    documents: int
    calls: int
    rounds: int
    singles: int
    fulls: int
    seconds: float
    rates: tuple[int, ...]
    lower: tuple[int, ...]
    load_seconds: float
    budget: int
    budgets: tuple[int, ...]
    prepared: float
    limit: float

    @property
    def dry(self) -> bool:
        return self.device == "cpu"


CARD = Size(
    device="cuda",
    precision="bf16",
    base="base",
    large="v2-m3",
    modern="modernbert",
    decoder="qwen3-0.6b",
    documents=100,
    calls=8,
    rounds=ROUNDS,
    singles=200,
    fulls=30,
    seconds=2.0,
    rates=(1_300, 1_800, 2_500),
    lower=(900, 600),
    load_seconds=5.0,
    budget=0,
    budgets=tuple(1 << power for power in range(9, 18)),
    prepared=100.0,
    limit=200.0,
)
DRY = Size(
    device="cpu",
    precision="fp32",
    base="tiny",
    large="tiny",
    modern="tiny-modernbert",
    decoder="tiny-qwen3",
    documents=6,
    calls=2,
    rounds=1,
    singles=3,
    fulls=2,
    seconds=0.2,
    rates=(20, 40),
    lower=(10,),
    load_seconds=0.5,
    budget=2_048,
    budgets=(512, 1_024),
    prepared=200.0,
    limit=300.0,
)


def size_of(*, dry: bool, rounds: int = 0, limit: float = 0.0) -> Size:
    """The size of a dry run or of one on a card, with as many rounds and seconds as are given."""
    size = DRY if dry else CARD
    return replace(size, rounds=rounds or size.rounds, limit=limit or size.limit)
