"""Draws a reliability diagram: how often pairs of a probability are relevant, before and after the map."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from rerank_grpc.calibration.calibration import Calibration, Fidelity
from rerank_grpc.evaluation.calibrating.figures import binned
from rerank_grpc.evaluation.calibrating.labelled import LabelledPairs

_BEFORE, _AFTER, _IDEAL = "#b3532c", "#1f6f8b", "#777777"


def reliability_png(
    calibration: Calibration, pairs: LabelledPairs, probabilities: npt.NDArray[np.float64]
) -> bytes:
    """Draws the held-out pairs, and returns the picture as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figures = calibration.figures
    figure = Figure(figsize=(10.5, 6.2), dpi=110, layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=(3, 1.1), sharex="col")
    _draw(axes[:, 0], "before: relevance_score", pairs.scores, pairs.relevant, figures.before, _BEFORE)
    name = f"after: {calibration.map.method} → calibrated_score"
    _draw(axes[:, 1], name, probabilities, pairs.relevant, figures.after, _AFTER)
    counts = calibration.held_out
    figure.suptitle(
        f"{calibration.model.name}: {counts.relevant + counts.irrelevant:,} held-out pairs of "
        f"{counts.queries:,} queries, {counts.relevant:,} of them relevant"
        + ("" if figures.clean_separation else "\nno clean separation")
    )
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def _draw(
    axes: Any,
    title: str,
    probabilities: npt.NDArray[np.float64],
    relevant: npt.NDArray[np.bool_],
    fidelity: Fidelity,
    colour: str,
) -> None:
    """Draws one diagram and, below it, the histograms of both labels."""
    top, bottom = axes
    bins = binned(probabilities, relevant)
    top.plot([0, 1], [0, 1], "--", color=_IDEAL, linewidth=1, label="exact")
    top.plot(bins.predicted, bins.observed, "o-", color=colour, markersize=5, label="bins of equal size")
    for predicted, observed, count in zip(*bins, strict=True):
        top.annotate(f"{count:,.0f}", (predicted, observed), (5, -11), textcoords="offset points", fontsize=7)
    top.set(title=title, ylabel="share of relevant pairs", xlim=(-0.02, 1.02), ylim=(-0.04, 1.04))
    top.text(
        0.98,
        0.04,
        f"ECE {fidelity.ece:.3f}\nBrier {fidelity.brier:.3f}\nAUC {fidelity.auc:.3f}",
        transform=top.transAxes,
        ha="right",
        bbox={"facecolor": "white", "edgecolor": "#cccccc"},
    )
    top.legend(loc="upper left", frameon=False)
    edges = np.linspace(0, 1, 31)
    for chosen, shade, label in ((~relevant, "#bbbbbb", "irrelevant"), (relevant, colour, "relevant")):
        bottom.hist(probabilities[chosen], edges, color=shade, alpha=0.75, label=label)
    bottom.set(yscale="symlog", xlabel="probability", ylabel="pairs")
    bottom.legend(loc="upper center", frameon=False, ncols=2, fontsize=8)
