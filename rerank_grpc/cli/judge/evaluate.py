"""`rerank-grpc eval`: measures models by judged queries."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rerank_grpc.cli.judge.judged import COLLECTION_ARGUMENTS, SCORING_ARGUMENTS, read_judged, scorers_of

EXAMPLES = """\
examples:
  rerank-grpc eval --beir scifact
"""
ARGUMENTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    *COLLECTION_ARGUMENTS,
    *SCORING_ARGUMENTS,
    ("--model", {"metavar": "MODEL", "action": "append", "help": "a model to measure; repeatable"}),
)


def run(parsed: argparse.Namespace) -> int:
    """Measures models; raises OptionError, ConfigurationError or RerankError."""
    collection, _ = read_judged(parsed)
    with scorers_of(parsed) as scorer_of:
        for model in parsed.model or [""]:
            with scorer_of(model) as scorer:
                print(scorer.identity)
                for name, query in collection.queries.items():
                    texts = [collection.corpus[each] for each in collection.candidates[name]]
                    print(name, scorer.score(query, texts) if texts else ())
    return 0
