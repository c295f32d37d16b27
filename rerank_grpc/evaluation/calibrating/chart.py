"""Draws a reliability diagram: how often pairs of a probability are relevant, before and after the map."""

from __future__ import annotations

import io
import warnings
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
    _draw(
        axes[:, 0],
        "before: relevance_score (AUC: logit)",
        pairs.scores,
        pairs.relevant,
        figures.before,
        _BEFORE,
    )
    name = f"after: {calibration.map.method} → calibrated_score"
    _draw(axes[:, 1], name, probabilities, pairs.relevant, figures.after, _AFTER)
    counts = calibration.held_out
    figure.suptitle(
        f"{calibration.model.name}: {counts.relevant + counts.irrelevant:,} held-out pairs of "
        f"{counts.queries:,} queries, {counts.relevant:,} of them relevant"
        + ("" if figures.clean_separation else "\nno clean separation"),
        parse_math=False,  # a model's name may hold dollars
    )
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters of the name that the font does not have
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
    least, most = bins.counts.min(), bins.counts.max()
    sizes = f"{least:,.0f}" if least == most else f"{least:,.0f} to {most:,.0f}"
    label = f"{len(bins.counts)} bins of {sizes} pairs"
    top.plot([0, 1], [0, 1], "--", color=_IDEAL, linewidth=1, label="exact")
    top.plot(bins.predicted, bins.observed, "o-", color=colour, markersize=5, label=label)
    if most > 1.5 * least:  # otherwise the label tells it
        for predicted, observed, count in zip(*bins, strict=True):
            place = (predicted, observed)
            top.annotate(f"{count:,.0f}", place, (5, -11), textcoords="offset points", fontsize=7)
    measured = f"ECE {fidelity.ece:.3f}, Brier {fidelity.brier:.3f}, AUC {fidelity.auc:.3f}"
    top.set_title(f"{title}\n{measured}", fontsize=11)
    top.set(ylabel="share of relevant pairs", xlim=(-0.02, 1.02), ylim=(-0.04, 1.04))
    top.legend(loc="upper left", frameon=False)
    edges = np.linspace(0, 1, 31)
    for chosen, shade, name in ((~relevant, "#bbbbbb", "irrelevant"), (relevant, colour, "relevant")):
        bottom.hist(probabilities[chosen], edges, color=shade, alpha=0.75, label=name)
    bottom.set(yscale="symlog", xlabel="probability", ylabel="pairs")
    bottom.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=2, fontsize=8)
