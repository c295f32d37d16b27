"""Orders surveyed models, and says which one fits what."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rerank_grpc.recommend.figures import Latency
from rerank_grpc.recommend.survey import Basis, SurveyRow

ENGLISH, CHINESE = "en", "zh"


@dataclass(frozen=True, slots=True)
class Demands:
    """The latency that a call may have at p95, in seconds, and the languages, the most important first."""

    latency: float
    languages: tuple[str, ...] = ()


def benchmark_for(language: str, rows: Iterable[SurveyRow]) -> str:
    """Returns the benchmark in a language of which most rows have a figure; "" where none has one.

    Figures of different benchmarks, or of one on other candidates, are never compared.
    """
    found = Counter(
        figure.benchmark
        for row in rows
        for figure in row.candidate.known.quality
        if language in figure.languages
    )
    return found.most_common(1)[0][0] if found else ""


def fitting(row: SurveyRow, latency: float) -> tuple[int, ...]:
    """Returns the numbers of candidates with which a call is fast enough at p95, or by the slowest of few."""
    if row.figures is None or row.problem:
        return ()
    return tuple(each.candidates for each in row.figures.latencies if each.p95 <= latency)


def ordered(rows: Iterable[SurveyRow], demands: Demands) -> list[SurveyRow]:
    """Orders rows: those that do more candidates in time first, then by the benchmark, then by speed."""
    rows = list(rows)
    benchmark = benchmark_for(_first(demands), rows)

    def key(row: SurveyRow) -> tuple[bool, int, float, float]:
        rate = row.figures.documents_per_second if row.figures else 0.0
        fits = max(fitting(row, demands.latency), default=0)
        return row.figures is not None and not row.problem, fits, _value(row, benchmark), rate

    return sorted(rows, key=key, reverse=True)


def _first(demands: Demands) -> str:
    return demands.languages[0] if demands.languages else ENGLISH


def _value(row: SurveyRow, benchmark: str) -> float:
    figure = row.candidate.quality(benchmark)
    return figure.value if figure else -1.0


def advise(rows: Sequence[SurveyRow], demands: Demands) -> Iterator[str]:
    """Says in a sentence each which model fits each number of candidates, and which one Chinese."""
    usable = [row for row in rows if row.figures and row.basis is not Basis.NONE and not row.problem]
    if not usable:
        yield "No model was measured: nothing can be recommended."
        return
    language = _first(demands)
    counts = sorted({each.candidates for row in usable if row.figures for each in row.figures.latencies})
    limit = time_of(demands.latency)
    for count in counts:
        yield f"For {count} candidates in {limit}: {_best(usable, count, demands, language)}"
    if language == ENGLISH and any(row.candidate.speaks(CHINESE) for row in usable):
        spoken = [row for row in usable if row.candidate.speaks(CHINESE)]
        yield f"Of these for Chinese, {counts[0]} candidates: {_best(spoken, counts[0], demands, CHINESE)}"


def _best(rows: Sequence[SurveyRow], count: int, demands: Demands, language: str) -> str:
    spoken = [row for row in rows if row.candidate.speaks(language)] or list(rows)
    benchmark = benchmark_for(language, spoken)
    fit = [row for row in spoken if count in fitting(row, demands.latency)]
    if not fit:
        fastest = min(spoken, key=lambda row: _p95(row, count))
        return f"none; the fastest, {fastest.candidate.name}, takes {_told(fastest, count)}."
    best = max(fit, key=lambda row: (_value(row, benchmark), -_p95(row, count)))
    value = _value(best, benchmark)
    known = f"{benchmark} {value:g}" if value >= 0 else "no figure of it on the benchmark is known"
    return f"{best.candidate.name} ({_told(best, count)}; {known})."


def _latency(row: SurveyRow, count: int) -> Latency:
    assert row.figures is not None
    found = (each for each in row.figures.latencies if each.candidates == count)
    return next(found, Latency(count, 0, math.inf, math.inf))


def _p95(row: SurveyRow, count: int) -> float:
    return _latency(row, count).p95


def _told(row: SurveyRow, count: int) -> str:
    found = _latency(row, count)
    time = time_of(found.p95)
    if found.is_of_few:
        return (
            f"{time} by its only call"
            if found.calls == 1
            else f"{time} by the slowest of {found.calls} calls"
        )
    return f"{'' if found.calls else 'about '}{time} at p95"


def time_of(seconds: float) -> str:
    """Writes a latency: "180 ms", "7.1 s", "266 s"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"
