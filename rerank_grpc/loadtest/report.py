"""Lays out a run: a table, the remarks beneath it, and JSON to repeat it by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rerank_grpc.loadtest.measures import StepFigures
from rerank_grpc.loadtest.search import Search, Verdict
from rerank_grpc.loadtest.slo import Objective

HEAD = (
    *("load", "sent/s", "answered/s", "good/s", "documents/s"),
    *("p50", "p90", "p95", "p99", "p99.9", "most", "failed", "late", "slo"),
)
CACHED_SHARE = 0.01  # above which identical pairs flatter the figures


@dataclass(slots=True)
class Report:
    """A run's facts and steps, so far; `search` is there where a rate is looked for."""

    facts: dict[str, Any]
    objective: Objective
    search: Search | None = None
    steps: list[StepFigures] = field(default_factory=list)
    interrupted: int = 0  # by this signal
    left_out: int = 0  # recorded calls behind --duration

    @property
    def is_complete(self) -> bool:
        """Whether all that was asked for is measured: each step to its end, or a search to its verdict."""
        if self.search is not None:
            return self.search.verdict is not None
        return all(step.cut is None for step in self.steps)

    @property
    def is_missed(self) -> bool:
        """Whether the objective is missed."""
        if self.search is not None:
            return self.search.verdict is Verdict.NONE_MEETS
        return any(step.missed for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Makes the file's content."""
        found = None
        if self.search is not None:
            given_up = self.search.given_up or None
            found = {"verdict": self.search.verdict, "rate": self.search.best, "given_up": given_up}
        return {
            **self.facts,
            "slo": str(self.objective) or None,
            "search": found,
            "interrupted": bool(self.interrupted),
            "left_out": self.left_out,
            "steps": [step.to_json() for step in self.steps],
        }


def row(step: StepFigures, objective: Objective) -> list[str]:
    """Lays out one step."""
    load = f"{step.rate:.4g}/s" if step.rate is not None else f"{step.callers} callers"
    verdict = "missed" if step.missed else "met" if step.is_judged else "-"
    return [
        load + (" (cut short)" if step.cut_short else ""),
        _rate(step.sent_rate),
        _rate(step.answered_rate),
        _rate(step.good_rate),
        f"{step.documents_rate:,.0f}",
        *(_milliseconds(step.percentile(percent)) for percent in (50, 90, 95, 99, 99.9)),
        _milliseconds(step.most),
        f"{step.failed:,} of {step.calls:,}",
        _milliseconds(step.late_p99) if step.late_p99 is not None else "-",
        verdict if objective != Objective() else "",
    ]


def remarks(report: Report) -> Iterator[str]:
    """Says what a table does not: limits that are missed, errors by reason, and what speaks against it."""
    for step in report.steps:
        load = row(step, report.objective)[0]
        if step.cut_short:
            left_out = f"{step.unfinished:,} calls in progress are left out"
            yield f"{load}: ended after {step.seconds:.1f} s: {step.cut_short}; {left_out}"
        if step.errors:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in step.errors.items())
            yield f"{load}: failed: {reasons}"
        for text in step.missed if report.objective != Objective() else ():
            yield f"{load}: missed {text}"
        for text in step.doubts:
            yield f"{load}: NOT TRUSTWORTHY: {text}"
    if report.left_out:
        yield f"recorded calls behind --duration, which were not sent: {report.left_out:,}"
    if report.steps:
        yield from _cached(report.steps)
        yield _driver(report.steps)
    if report.search is not None:
        yield outcome(report.search, report.objective, report.steps)


def outcome(search: Search, objective: Objective, steps: Sequence[StepFigures]) -> str:
    """Says in one sentence what a search has found."""
    best = search.best
    if search.verdict is Verdict.NONE_MEETS:
        lowest = min(steps, key=lambda step: step.rate or 0.0)
        reasons = "; ".join(lowest.missed)
        text = f"no rate meets {objective}: already at {lowest.rate:.4g} calls/s, {reasons}"
        least = lowest.percentile(50)
        idle = f"; the median there is {_milliseconds(least)} ms" if least is not None else ""
        return f"{text}{idle}: ask less of a call, or begin at a lower rate"
    if best is None or search.verdict is None:
        so_far = f"{best:.4g} calls/s has met" if best is not None else "no rate is known to meet"
        why = f" ({search.given_up})" if search.given_up else ""
        return f"the search was cut short{why}: {so_far} {objective} so far"
    documents = max((step.documents_rate for step in steps if step.rate == best), default=0.0)
    measured = f"{best:.4g} calls/s ({documents:,.0f} documents/s), measured twice"
    if search.verdict is Verdict.ALL_MEET:
        return f"all rates meet {objective}, up to {measured}: the highest lies above"
    return f"the highest rate that meets {objective} is {measured}"


def _cached(steps: Sequence[StepFigures]) -> Iterator[str]:
    known = [step.cached_share for step in steps if step.cached_share is not None]
    if not known:
        return
    most = max(known)
    note = ": they make the server look faster" if most > CACHED_SHARE else ""
    yield f"pairs that cost nothing, as identical ones were known or being scored: {most:.1%}{note}"


def _driver(steps: Sequence[StepFigures]) -> str:
    busy = f"the driver used {max(step.processor_share for step in steps):.0%} of a processor at most"
    tokens = [step.tokens_rate for step in steps if step.tokens_rate is not None]
    return f"{busy}; the server told of up to {max(tokens):,.0f} tokens/s" if tokens else busy


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 1_000 else f"{value:,.0f}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    value = 1000 * seconds
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1_000 else f"{value:,.0f}"
