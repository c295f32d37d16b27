"""The findings of a survey: as tables for people, as JSON for machines."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from rerank_grpc.recommend.choice import Demands, advise, benchmark_for, fitting, ordered, time_of
from rerank_grpc.recommend.figures import FEW_CALLS, Latency
from rerank_grpc.recommend.survey import Basis, Survey, SurveyOptions, SurveyRow
from rerank_grpc.units import million, size

NAME_CELLS = 34
ABOUT = {Basis.ESTIMATE: "~", Basis.SAME_SHAPE: "≈"}
BUSY = 0.1  # the share of the processors' time from which on it is told that others took it
FORM = 1  # of the JSON


def measured_table(
    rows: Sequence[SurveyRow], options: SurveyOptions
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Makes the head and the rows of what was measured here, times in ms."""
    head = [
        "model",
        "docs/s",
        *(f"p95 of {count}" for count in options.candidates),
        "memory",
        "in",
        "weights",
    ]
    table = []
    for row in rows:
        figures = row.figures
        if figures is None or row.problem:
            continue
        about = ABOUT.get(row.basis, "")
        by_count = {each.candidates: each for each in figures.latencies}
        times = (by_count.get(count) for count in options.candidates)
        table.append(
            (
                _name(row),
                f"{about}{_digits(figures.documents_per_second)}",
                *(_time(each, about) if each else "" for each in times),
                f"{about}{size(figures.resident)}",
                figures.precision,
                {Basis.OWN: "own", Basis.RANDOM: "random"}.get(row.basis, f"{about} {row.reference}"),
            )
        )
    return head, table


def published_table(
    rows: Sequence[SurveyRow], benchmarks: Sequence[str]
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Makes the head and the rows of what the catalogue says, with the figures of benchmarks."""
    head = ["model", "size", "longest", *(f"[{place}]" for place, _ in enumerate(benchmarks, 1))]
    common = {benchmark: _shared_notes(rows, benchmark) for benchmark in benchmarks}
    table = []
    for row in rows:
        known = row.candidate.known
        table.append(
            (
                _name(row),
                million(known.parameters) if known.parameters else "",
                f"{known.max_tokens:,}" if known.max_tokens else "",
                *(_figure(row, benchmark, shared) for benchmark, shared in common.items()),
                " ".join(known.languages),
                known.licence,
            )
        )
    return [*head, "languages", "licence"], table


def benchmarks_of(rows: Sequence[SurveyRow], demands: Demands) -> list[str]:
    """Chooses one benchmark for each language that is asked for; English and Chinese where none is."""
    languages = demands.languages or ("en", "zh")
    return list(dict.fromkeys(filter(None, (benchmark_for(each, rows) for each in languages))))


def sources_of(rows: Sequence[SurveyRow], benchmarks: Sequence[str]) -> Iterator[str]:
    """Says where the figures of each benchmark were read, and what is noted there."""
    for place, benchmark in enumerate(benchmarks, 1):
        found = {row.candidate.name: row.candidate.quality(benchmark) for row in rows}
        sources = dict.fromkeys(each.source for each in found.values() if each)
        shared = _shared_notes(rows, benchmark)
        yield "; ".join([f"[{place}] {benchmark}, of 100: {', '.join(sources)}", *shared])
        own: dict[str, list[str]] = {}
        for name, each in found.items():
            for note in each.notes if each else ():
                own.setdefault(note, []).append(name)
        for note, names in own.items():
            if note not in shared:
                yield f"* [{place}] {', '.join(names)}: {note}"


def _shared_notes(rows: Sequence[SurveyRow], benchmark: str) -> list[str]:
    """Returns the notes that all figures of a benchmark have."""
    figures = [each for row in rows if (each := row.candidate.quality(benchmark))]
    notes = figures[0].notes if figures else ()
    return [note for note in notes if all(note in each.notes for each in figures)]


def _figure(row: SurveyRow, benchmark: str, shared: Collection[str]) -> str:
    """Writes a figure, marked where it has a note of its own."""
    found = row.candidate.quality(benchmark)
    if found is None:
        return "–"
    return f"{found.value:.2f}{'*' if set(found.notes) - set(shared) else ''}"


def notes(rows: Sequence[SurveyRow], machine: str) -> Iterator[str]:
    """Says what is measured and how, what is not, and what random weights mean."""
    measured = [row.figures for row in rows if row.figures and row.basis in (Basis.OWN, Basis.RANDOM)]
    tokens = sum(each.tokens_per_document for each in measured) / len(measured) if measured else 0.0
    yield (
        f"Measured here ({machine}): documents of {tokens:.0f} tokens; p95 is the latency of one caller's "
        "calls with so many candidates, docs/s the rate of several callers, memory that of the process."
    )
    others = max((each.others for each in measured), default=0.0)
    if others > BUSY:
        yield (
            f"Other processes took up to {others:.0%} of the processors' time meanwhile: a quiet machine is "
            "faster than this."
        )
    bases = {row.basis for row in rows if not row.problem}
    if Basis.RANDOM in bases:
        yield "Random weights are as fast as a model's own, and rank nothing: 'rerank-grpc download' gets it."
    if Basis.SAME_SHAPE in bases:
        yield "≈ was measured with another model of the same layers, which stands under weights."
    if Basis.ESTIMATE in bases or any(not each.calls for figures in measured for each in figures.latencies):
        yield "~ is an estimate by the size of the model or of the call; nothing was measured."
    if any(each.is_of_few for figures in measured for each in figures.latencies):
        yield (
            f"? is the slowest of fewer than {FEW_CALLS} calls: --seconds makes more of them, and --json has "
            "their number."
        )
    yield "Published figures are of other texts than yours: 'rerank-grpc eval' measures on your own."


def unmeasured(rows: Sequence[SurveyRow]) -> Iterator[str]:
    """Says why rows have no figures."""
    for row in rows:
        if row.problem:
            yield f"{row.candidate.name}: {row.problem}"


def to_json(
    survey: Survey, demands: Demands, machine: Mapping[str, Any], left_out: Mapping[str, str]
) -> dict[str, Any]:
    """Makes the fields of --json: bytes, seconds, and null for what is not known."""
    rows, options = survey.rows, survey.options
    return {
        "form": FORM,
        "machine": dict(machine),
        "measured_with": {
            "candidates": list(options.candidates),
            "tokens_per_document": options.tokens,
            "seconds": options.seconds,
        },
        "demands": {"p95_seconds": demands.latency, "languages": list(demands.languages)},
        "models": [_json_of(row, demands) for row in ordered(rows, demands)],
        "left_out": dict(left_out),
        "advice": list(advise(rows, demands)),
    }


def _json_of(row: SurveyRow, demands: Demands) -> dict[str, Any]:
    known, figures, room = row.candidate.known, row.figures, row.room
    return {
        "model": row.candidate.name,
        "id": known.id,
        "at_hand": row.candidate.directory is not None,
        "basis": row.basis.value,
        "reference": row.reference or None,
        "problem": row.problem or None,
        "fits_candidates": list(fitting(row, demands.latency)),
        "documents_per_second": figures.documents_per_second if figures else None,
        "latencies": [each._asdict() for each in figures.latencies] if figures else [],
        "tokens_per_document": figures.tokens_per_document if figures else None,
        "others_share": figures.others if figures else None,
        "load_seconds": figures.load_seconds or None if figures else None,
        "resident_bytes": figures.resident if figures else None,
        "most_bytes_of_a_server": room.need.peak if room else None,
        "precision": room.precision if room else None,
        "device": room.device if room else None,
        "parameters_millions": known.parameters or None,
        "max_tokens": known.max_tokens or None,
        "languages": list(known.languages),
        "licence": known.licence or None,
        "quality": [
            {
                "benchmark": each.benchmark,
                "value": each.value,
                "source": each.source,
                "notes": list(each.notes),
            }
            for each in known.quality
        ],
    }


def _name(row: SurveyRow) -> str:
    name = row.candidate.name
    return name if len(name) <= NAME_CELLS else f"{name[: NAME_CELLS - 1]}…"


def _time(latency: Latency, about: str) -> str:
    return (
        f"{about or ('' if latency.calls else '~')}{time_of(latency.p95)}{'?' if latency.is_of_few else ''}"
    )


def _digits(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
