"""An evaluation as a table for people, as JSON, and as files in TREC's form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rerank_grpc import __version__
from rerank_grpc.evaluation.figures import EvaluatedModel, Evaluation, Run
from rerank_grpc.evaluation.journal import stem_of, told
from rerank_grpc.evaluation.measures import LEVEL, ConfidenceInterval, resamples_of
from rerank_grpc.files.whole import write_whole

FEW_QUERIES = 20  # below, the bootstrap covers clearly less than 95 % (tests/evaluation/test_intervals.py)
RESULTS, BEFORE, QRELS, CHART = "results.json", "before.trec", "qrels.txt", "chart.png"


def table(found: Evaluation) -> Iterator[str]:
    """Writes lines for people: the collection, each model's measures before and after, and the time."""
    collection = found.collection
    relevant = sum(level > 0 for judged in collection.qrels.values() for level in judged.values())
    yield (
        f"{len(collection.queries):,} judged queries, {len(collection.corpus):,} documents, "
        f"{relevant:,} relevant; {collection.pairs:,} candidates hold "
        f"on average {100 * found.ceiling:.1f} % of a query's relevant documents"
    )
    yield ""
    width = max(len("model"), *(len(model.identity.name) for model in found.models))
    yield (
        f"{'model':{width}}  {'measure':10}  before   after  difference, 95 % interval   better/same/worse"
    )
    for model in found.models:
        for number, (measure, before, after, difference, outcome) in enumerate(model.figures):
            name = model.identity.name if number == 0 else ""
            yield (
                f"{name:{width}}  {measure:10}  {before.mean:.4f}  {after.mean:.4f}  "
                f"{_signed(difference):25}  {outcome.better}/{outcome.same}/{outcome.worse}"
            )
        yield f"{'':{width}}  {_time(model)}"
    if caution := _caution(len(collection.queries)):
        yield caution
    yield ""
    yield from _depths(found, width)
    if found.contrasts:
        yield ""
        yield "between models: the second less the first, 95 % interval, better/same/worse"
        for first, second, measure, difference, outcome in found.contrasts:
            counts = f"{outcome.better}/{outcome.same}/{outcome.worse}"
            yield f"  {second} - {first}  {measure:10}  {_signed(difference):25}  {counts}"


def _depths(found: Evaluation, width: int) -> Iterator[str]:
    titles = [each.measure for each in found.models[0].figures]
    heads = "  ".join(f"{title:>9}" for title in titles)
    yield "when only the first candidates are reranked, and the others stay behind them in their order:"
    yield f"{'model':{width}}  depth    held  {heads}"
    for model in found.models:
        for number, (depth, held, means) in enumerate(model.depths):
            values = "  ".join(f"{means[title]:{max(9, len(title))}.4f}" for title in titles)
            name = model.identity.name if number == 0 else ""
            yield f"{name:{width}}  {depth:5}  {held:.4f}  {values}"


def _caution(queries: int) -> str:
    if queries >= FEW_QUERIES:
        return ""
    if queries == 1:
        return "1 query has no interval, and says nothing of others"
    return (
        f"{queries} queries are few: their 95 % intervals are too narrow, and hold the true difference "
        f"less often than they say; judge {FEW_QUERIES} at the least"
    )


def _time(model: EvaluatedModel) -> str:
    time = model.time
    at_once = f", {time.concurrency} calls at once" if time.concurrency > 1 else ""
    return (
        f"{time.wall:.3f} s a query by the clock{at_once}; "
        f"a call took {time.call:.3f} s, the model's own part {time.inference:.3f} s"
    )


def _signed(interval: ConfidenceInterval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+.4f}"
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def as_json(found: Evaluation, options: dict[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    """Makes the value of results.json; measures are means over all judged queries, times are seconds."""
    collection = found.collection
    return {
        "version": __version__,
        "collection": {
            "digest": collection.digest,
            "judgements_digest": collection.judgements_digest,
            "queries": len(collection.queries),
            "documents": len(collection.corpus),
            "pairs": collection.pairs,
            "depth": collection.depth,
            "recall_of_candidates": found.ceiling,
        },
        "options": options,
        "intervals": {
            "method": "paired bootstrap over queries",
            "level": LEVEL,
            "resamples": resamples_of(len(collection.queries)),
            "seed": found.seed,
            "caution": _caution(len(collection.queries)),
        },
        "left_out": list(left_out),
        "models": [_model_json(each) for each in found.models],
        "between_models": [
            {
                **each._asdict(),
                "difference": each.difference._asdict(),
                "outcome": each.outcome._asdict(),
            }
            for each in found.contrasts
        ],
    }


def _model_json(model: EvaluatedModel) -> dict[str, Any]:
    return {
        **model.identity._asdict(),
        "run": f"{stem_of(model.identity.name)}.trec",
        "measures": {
            each.measure: {
                "before": each.before._asdict(),
                "after": each.after._asdict(),
                "difference": each.difference._asdict(),
                "queries": each.outcome._asdict(),
            }
            for each in model.figures
        },
        "depths": [
            {"depth": each.depth, "recall_of_candidates": each.held, "measures": each.means}
            for each in model.depths
        ],
        "seconds_per_query": model.time._asdict(),
    }


def write(found: Evaluation, folder: Path, options: dict[str, Any], left_out: Sequence[str]) -> None:
    """Writes the runs, the judgements that were used, and results.json; each whole or not at all.

    Raises ConfigurationError where a file cannot be written.
    """
    contents = {
        QRELS: "".join(
            _line(query, "0", document, str(level))
            for query, judged in found.collection.qrels.items()
            for document, level in judged.items()
        ),
        BEFORE: run_text(found.before, "before"),
        RESULTS: json.dumps(as_json(found, options, left_out), ensure_ascii=False, indent=2) + "\n",
    }
    for model in found.models:
        stem = stem_of(model.identity.name)
        contents[f"{stem}.trec"] = run_text(model.run, stem)
    for name, text in contents.items():
        with told(folder / name):
            write_whole(folder / name, text.encode())


def run_text(run: Run, tag: str) -> str:
    """Writes a run in TREC's six columns: query, Q0, document, rank, score, tag."""
    return "".join(
        _line(query, "Q0", document, str(rank), f"{score:.9g}", tag)
        for query, found in run.items()
        for rank, (document, score) in enumerate(found, 1)
    )


def ids_with_spaces(found: Evaluation) -> bool:
    """Tells whether an id holds white space, by which other readers of a run would split it."""
    names = [*found.before, *(name for ranking in found.before.values() for name, _ in ranking)]
    return any(len(name.split()) > 1 for name in names)


def _line(*columns: str) -> str:
    separator = "\t" if any(" " in column for column in columns) else " "
    return separator.join(columns) + "\n"
