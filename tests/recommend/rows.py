"""Rows of a survey, as if they had been measured."""

from __future__ import annotations

from rerank_grpc.checkpoints.catalogue import KnownModel, PublishedQuality
from rerank_grpc.recommend.candidates import ModelCandidate
from rerank_grpc.recommend.figures import FEW_CALLS, Latency, Measured
from rerank_grpc.recommend.survey import Basis, SurveyRow


def row(
    name: str,
    p95: tuple[float, float] | None,
    rate: float = 1.0,
    languages: tuple[str, ...] = ("en",),
    basis: Basis = Basis.RANDOM,
    calls: int = FEW_CALLS,
    **quality: float,
) -> SurveyRow:
    figures = tuple(
        PublishedQuality(benchmark, value, ("zh",) if benchmark == "Z" else ("en",), "a page")
        for benchmark, value in quality.items()
    )
    known = KnownModel(f"acme/{name}", languages=languages, quality=figures)
    if p95 is None:
        return SurveyRow(ModelCandidate(name, known), Basis.NONE, problem="it failed")
    latencies = tuple(Latency(count, calls, each, each) for count, each in zip((20, 50), p95, strict=True))
    measured = Measured(
        "fp32", "cpu", "sdpa", 512, 1.0, documents_per_second=rate, latencies=latencies, complete=True
    )
    return SurveyRow(ModelCandidate(name, known), basis, measured)
