"""The chart of an evaluation: how scores of relevant pairs and of others lie, and nDCG@10 by time."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path
from typing import Any

from rerank_grpc.evaluation.figures import EvaluatedModel, Evaluation
from rerank_grpc.evaluation.journal import told
from rerank_grpc.evaluation.measures import bounds
from rerank_grpc.files.whole import write_whole

# Okabe and Ito's colours, which are told apart by colour-blind people too (https://jfly.uni-koeln.de/color/).
RELEVANT, OTHERS = "#0072B2", "#E69F00"
_MODELS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = "osD^vP"
_PANELS_IN_A_ROW = 3
_BINS = 40
_LONGEST_NAME = 32
_MEASURE = "nDCG@10"


def draw(found: Evaluation, path: Path) -> None:
    """Draws a chart into a PNG file; raises ConfigurationError where it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    panels = len(found.models) + 1
    columns = min(panels, _PANELS_IN_A_ROW)
    rows = math.ceil(panels / columns)
    canvas = Canvas(figsize=(4.4 * columns, 3.5 * rows), layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    axes = [canvas.add_subplot(rows, columns, number + 1) for number in range(panels)]
    for model, axis in zip(found.models, axes, strict=False):
        _distributions(axis, model)
    _by_time(axes[-1], found)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    content = BytesIO()
    canvas.savefig(content, format="png", dpi=110)
    with told(path):
        write_whole(path, content.getvalue())


def _distributions(axis: Any, model: EvaluatedModel) -> None:
    bins = [place / _BINS for place in range(_BINS + 1)]
    for scores, color, style, name in (
        (model.others, OTHERS, "--", "not judged relevant"),
        (model.relevant, RELEVANT, "-", "relevant"),
    ):
        if scores:
            shares = [100 / len(scores)] * len(scores)
            label = f"{name} ({len(scores):,} pairs)"
            axis.hist(scores, bins, weights=shares, color=color, alpha=0.3)
            axis.hist(
                scores,
                bins,
                weights=shares,
                color=color,
                histtype="step",
                linestyle=style,
                linewidth=1.6,
                label=label,
            )
    axis.set(xlabel="relevance_score", ylabel="% of pairs", xlim=(0, 1))
    axis.set_title(_named(model), fontsize=11)
    axis.margins(y=0.25)
    axis.legend(fontsize=8, frameon=False, loc="upper right")


def _by_time(axis: Any, found: Evaluation) -> None:
    before = found.models[0].of(_MEASURE).before
    axis.axhline(before.mean, color="#555555", linestyle=":", linewidth=1.4)
    axis.annotate(
        f"candidates as they came: {before.mean:.3f}",
        (0.02, before.mean),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=8,
        color="#333333",
    )
    times = [model.time.wall for model in found.models]
    for number, model in enumerate(found.models):
        after = model.of(_MEASURE).after
        color, marker = _MODELS[number % len(_MODELS)], _MARKERS[number % len(_MARKERS)]
        low, high = bounds(after)
        error = [[after.mean - low], [high - after.mean]]
        axis.errorbar(
            model.time.wall,
            after.mean,
            yerr=error,
            fmt=marker,
            color=color,
            capsize=4,
            markersize=7,
            label=_named(model),
        )
        axis.annotate(
            f"{after.mean:.3f}",
            (model.time.wall, after.mean),
            xytext=(8, -3),
            textcoords="offset points",
            fontsize=8,
            color=color,
        )
    if max(times) > 8 * min(times) > 0:
        axis.set_xscale("log")
    else:
        axis.set_xlim(0, 1.6 * max(times))
    axis.set(xlabel="seconds a query", ylabel=f"{_MEASURE}, 95 % interval")
    ends = [before.mean, *(end for model in found.models for end in bounds(model.of(_MEASURE).after))]
    axis.set_ylim(max(0.0, min(ends) - 0.1), min(1.02, max(ends) + 0.1))
    axis.set_title("quality and time", fontsize=11)
    axis.legend(fontsize=8, frameon=False, loc="lower right")


def _named(model: EvaluatedModel) -> str:
    name = model.identity.name
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
