"""A chart of published quality against the documents/s measured here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rerank_grpc.recommend.choice import Demands, benchmark_for
from rerank_grpc.recommend.survey import Basis, SurveyRow


def draw(rows: Sequence[SurveyRow], demands: Demands, path: Path) -> bool:
    """Draws a PNG; draws none, and returns False, where no model has both a rate and a figure."""
    language = demands.languages[0] if demands.languages else "en"
    benchmark = benchmark_for(language, rows)
    points = [
        (row.figures.documents_per_second, figure.value, row)
        for row in rows
        if row.figures and not row.problem and (figure := row.candidate.quality(benchmark))
    ]
    if not points:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure_ = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure_)
    axes = figure_.subplots()
    for estimated, marker in ((False, "o"), (True, "x")):
        chosen = [point for point in points if (point[2].basis is Basis.ESTIMATE) is estimated]
        label = "estimated by size" if estimated else "measured here"
        if chosen:
            axes.scatter([x for x, _, _ in chosen], [y for _, y, _ in chosen], marker=marker, label=label)
    for x, y, row in points:
        axes.annotate(row.candidate.name, (x, y), (4, 4), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("documents/s on this machine")
    axes.set_ylabel(f"{benchmark} (published)")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower left")
    figure_.savefig(path, dpi=120)
    return True
