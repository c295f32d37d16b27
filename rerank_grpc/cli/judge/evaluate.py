"""`rerank-grpc eval`: measures models by judged queries."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_grpc.cli import terminal
from rerank_grpc.cli.judge.judged import (
    COLLECTION_ARGUMENTS,
    EVAL_EXTRA,
    SCORING_ARGUMENTS,
    ScorerFactory,
    files_of,
    read_judged,
    scored_queries,
    scorers_of,
    traced,
    whole_number,
)
from rerank_grpc.cli.process import needs
from rerank_grpc.config.reading import names_server

if TYPE_CHECKING:
    from rerank_grpc.evaluation.collection import Collection
    from rerank_grpc.evaluation.figures import ScoredModel

EXAMPLES = """\
examples:
  rerank-grpc eval --beir scifact
  rerank-grpc eval --beir scifact --model embedded --model bge-reranker-v2-m3 --candidates 50
  rerank-grpc eval --queries q.tsv --corpus docs.jsonl --run bm25.trec --qrels qrels.txt
  rerank-grpc eval --beir scifact --target rerank.internal:50051 --model bge

Reranks each query's candidates, and compares nDCG@10, MRR@10, Recall and MAP with
those of the candidates' own order: a run's, or BM25's where there is none. Models
are loaded here one after another; with --target, they are a running server's.

OUTPUT gets the new runs in TREC's form, results.json and chart.png. The same
command again goes on where a start was ended. Lines that fit nothing are told and
left out.
"""
ARGUMENTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    *COLLECTION_ARGUMENTS,
    (
        "--model",
        {
            "metavar": "MODEL",
            "action": "append",
            "dest": "models",
            "help": "embedded, a directory, a hub id or a name; a server's name with --target (default: "
            "embedded, or the server's; repeatable)",
        },
    ),
    *SCORING_ARGUMENTS,
    (
        "--top-k",
        {
            "metavar": "K",
            "action": "append",
            "type": whole_number,
            "help": "measure the recall of the first K (default: 10; repeatable)",
        },
    ),
    (
        "--output",
        {"metavar": "DIR", "default": "rerank-eval", "help": "the folder of results (default: rerank-eval)"},
    ),
)


def run(parsed: argparse.Namespace) -> int:
    """Measures models: 0 when all are; raises OptionError, ConfigurationError or RerankError."""
    with needs("eval", EVAL_EXTRA):
        import ir_measures  # noqa: F401  # missing here, they are told before any work
        import matplotlib  # noqa: F401
        import tqdm  # noqa: F401
    from rerank_grpc.evaluation import chart, report
    from rerank_grpc.evaluation.figures import evaluate
    from rerank_grpc.evaluation.journal import folder_of
    from rerank_grpc.evaluation.measures import RECALL_AT, measures_of

    collection, problems = read_judged(parsed)
    measures = measures_of(parsed.top_k or (RECALL_AT,))
    options = {
        "instruction": parsed.instruction,
        "measures": list(map(str, measures)),
        "server": names_server(parsed.flags),
        **traced(files_of(parsed), parsed.candidates),
    }
    models = list(dict.fromkeys(parsed.models or [""]))
    with folder_of(Path(parsed.output)) as folder, scorers_of(parsed, models) as scorer_of:
        scored = [_scored(collection, name, scorer_of, folder, parsed.instruction) for name in models]
        found = evaluate(collection, scored, measures)
        report.write(found, folder, options, problems.lines())
        chart.draw(found, folder / report.CHART)
        for line in report.table(found):
            print(line)
        if report.ids_with_spaces(found):
            terminal.warn(
                "ids hold spaces: the runs have tabs between their columns, which trec_eval cannot read"
            )
        print(f"\n{folder}: {report.RESULTS}, {report.CHART}, and a run of each model (*.trec)")
    return 0


def _scored(
    collection: Collection, model: str, scorer_of: ScorerFactory, folder: Path, instruction: str
) -> ScoredModel:
    """Has a model score what its journal in the folder lacks."""
    from rerank_grpc.evaluation.figures import ScoredModel

    with scorer_of(model) as scorer:
        scored = scored_queries(collection, scorer, folder, instruction)
        return ScoredModel(scorer.identity, scored, scorer.concurrency)
