"""The picture of a run: latency by rate with the objective's limits, and what was answered by rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rerank_grpc.loadtest.measures import StepFigures
from rerank_grpc.loadtest.slo import Objective

PERCENTS = (50.0, 95.0, 99.0)
COLOURS = ("#4c78a8", "#f58518", "#e45756")


def draw(steps: Sequence[StepFigures], objective: Objective, path: Path) -> None:
    """Writes a PNG; raises OSError, and ModuleNotFoundError where matplotlib is missing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ordered = sorted(steps, key=lambda step: step.rate or float(step.callers or 0))
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    above, beneath = figure.subplots(2, 1, sharex=True)
    _latencies(above, ordered, objective)
    _rates(beneath, ordered, good=bool(objective.latencies))
    open_loop = all(step.rate is not None for step in ordered)
    beneath.set_xlabel("calls/s asked for" if open_loop else "callers")
    figure.savefig(path, format="png", dpi=110)


def _latencies(axes: Any, steps: Sequence[StepFigures], objective: Objective) -> None:
    for percent, colour in zip(PERCENTS, COLOURS, strict=True):
        points = [(_load(step), step.percentile(percent)) for step in steps]
        known = [(load, 1000 * value) for load, value in points if value is not None]  # not among failures
        axes.plot(
            *zip(*known, strict=True), marker="o", color=colour, label=f"p{percent:g}"
        ) if known else None
    for limit in objective.latencies:
        axes.axhline(1000 * limit.seconds, color="black", linestyle="--", linewidth=1, label=str(limit))
    axes.set_yscale("log")
    axes.set_ylabel("latency, ms")
    axes.grid(True, which="both", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:  # nothing answered leaves no line
        axes.legend()


def _rates(axes: Any, steps: Sequence[StepFigures], *, good: bool) -> None:
    loads = [_load(step) for step in steps]
    axes.plot(loads, [step.answered_rate for step in steps], marker="o", color="#9ecae9", label="answered/s")
    if good:
        axes.plot(loads, [step.good_rate for step in steps], marker="o", color="#54a24b", label="good/s")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("calls/s")
    axes.grid(True, alpha=0.3)
    axes.legend()


def _load(step: StepFigures) -> float:
    return step.rate if step.rate is not None else float(step.callers or 0)
