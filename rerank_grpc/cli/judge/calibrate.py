"""`rerank-grpc calibrate`: fits the map from logits to the probability of relevance."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerank_grpc.calibration.calibration import CalibratedModel, LabelRule, ScoringOptions
from rerank_grpc.calibration.file import write_calibration
from rerank_grpc.calibration.maps import BadField
from rerank_grpc.cli import terminal
from rerank_grpc.cli.judge.calibration_text import cautions, described
from rerank_grpc.cli.judge.judged import (
    COLLECTION_ARGUMENTS,
    EVAL_EXTRA,
    SCORING_ARGUMENTS,
    read_judged,
    scored_queries,
    scorers_of,
)
from rerank_grpc.cli.process import needs
from rerank_grpc.config.options import OptionError
from rerank_grpc.errors import ConfigurationError, one_line
from rerank_grpc.files.obstacles import obstacle
from rerank_grpc.files.whole import write_whole

if TYPE_CHECKING:
    from rerank_grpc.evaluation.calibrating.calibrate import FitOptions, FittedCalibration
    from rerank_grpc.evaluation.calibrating.labelled import LabelledPairs
    from rerank_grpc.evaluation.collection import Collection
    from rerank_grpc.evaluation.scorers import PairScore, QueryScorer

EXAMPLES = """\
examples:
  rerank-grpc calibrate --beir scifact --model embedded -o embedded.calibration.json
  rerank-grpc calibrate --beir scifact --target localhost:50051 --for-precision 0.9 -o m.calibration.json
  rerank-grpc calibrate --queries q.jsonl --corpus c.jsonl --qrels q.txt --run r.trec -o m.json
  rerank-grpc serve --model embedded --calibration embedded=embedded.calibration.json
"""


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1, such as 0.9")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


ARGUMENTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    *COLLECTION_ARGUMENTS,
    *SCORING_ARGUMENTS,
    ("--model", {"metavar": "MODEL", "default": "", "help": "the model whose logits are mapped"}),
    (
        "-o, --output",
        {
            "metavar": "FILE",
            "required": True,
            "help": "the calibration; beside it go a reliability diagram (.png) and the scores (.scores)",
        },
    ),
    (
        "--method",
        {
            "choices": ("platt", "isotonic"),
            "default": "platt",
            "help": "a sigmoid, or any rising line, which takes some thousand pairs (default: platt)",
        },
    ),
    (
        "--for-precision",
        {
            "metavar": "P",
            "type": _share,
            "action": "append",
            "default": [],
            "help": "propose a threshold for this precision, such as 0.9; repeatable (default: several)",
        },
    ),
    (
        "--for-recall",
        {
            "metavar": "R",
            "type": _share,
            "action": "append",
            "default": [],
            "help": "propose a threshold for this recall, such as 0.95; repeatable (default: several)",
        },
    ),
    (
        "--relevant-from",
        {
            "metavar": "GRADE",
            "type": _count,
            "default": 1,
            "help": "a judgement of this grade or more is relevant (default: 1)",
        },
    ),
    (
        "--unjudged",
        {
            "choices": ("irrelevant", "left-out"),
            "default": "irrelevant",
            "help": "what a candidate without a judgement counts as (default: irrelevant)",
        },
    ),
    (
        "--seed",
        {"metavar": "N", "type": _count, "default": 0, "help": "chooses the held-out queries (default: 0)"},
    ),
)


def run(parsed: argparse.Namespace) -> int:
    """Fits, measures and writes a calibration; raises OptionError, ConfigurationError or RerankError."""
    output = Path(parsed.output)
    _check_output(output)
    with needs("calibrate", EVAL_EXTRA):
        from rerank_grpc.evaluation.calibrating.calibrate import calibrate
        from rerank_grpc.evaluation.calibrating.chart import reliability_png
    from rerank_grpc.evaluation.journal import folder_of

    rule, options = LabelRule(parsed.relevant_from, parsed.unjudged), _options(parsed.instruction)
    collection, _ = read_judged(parsed)
    _check_labels(collection, rule, parsed.seed)
    with (
        folder_of(output.with_suffix(".scores")) as folder,
        scorers_of(parsed) as scorer_of,
        scorer_of(parsed.model) as scorer,
    ):
        model = _model(parsed.model, scorer)
        scored = scored_queries(collection, scorer, folder, parsed.instruction)
    pairs = _labelled(collection, {name: each.scores for name, each in scored.items()}, rule)
    fitted = calibrate(pairs, model, rule, options, _fit_options(parsed))
    found, chart = fitted.calibration, output.with_suffix(".png")
    try:
        write_whole(chart, reliability_png(found, fitted.held_out, fitted.probabilities))
        write_calibration(output, found)
    except OSError as error:
        raise ConfigurationError(f"cannot write {output}: {obstacle(output, error, writing=True)}") from None
    _print(fitted, output, chart)
    return 0


def _options(instruction: str) -> ScoringOptions:
    try:
        return ScoringOptions(instruction=instruction)
    except BadField as error:
        raise OptionError(f"--{error}") from None


def _check_output(output: Path) -> None:
    """Finds before any work that the output could not be written; raises OptionError."""
    name, folder = one_line(str(output)), Path(os.path.realpath(output)).parent
    if output.suffix in (".png", ".scores"):
        kind = "diagram" if output.suffix == ".png" else "folder of scores"
        raise OptionError(
            f"-o: {name}: the {kind} takes {output.suffix}: name a file that ends in .calibration.json"
        )
    if output.is_dir() or not output.name:
        raise OptionError(f"-o: {name}: is a directory: name a file in it")
    if output.exists() and not output.is_file():
        raise OptionError(f"-o: {name}: is no regular file: name another one")
    if not folder.is_dir():
        raise OptionError(f"-o: {name}: there is no folder {one_line(str(folder))}: make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        error = PermissionError(13, "Permission denied")
        raise OptionError(f"-o: {name}: {obstacle(folder, error, writing=True)}")


def _check_labels(collection: Collection, rule: LabelRule, seed: int) -> None:
    """Finds before any scoring that there are too few pairs of a label; raises ConfigurationError."""
    from rerank_grpc.evaluation.calibrating.labelled import halves, labelled, scored_pairs

    zeros = {name: [(0.0, 0.0)] * len(found) for name, found in collection.candidates.items()}
    pairs, _ = labelled(scored_pairs(collection.candidates, collection.qrels, zeros), rule)
    halves(pairs, rule, seed)


def _labelled(
    collection: Collection, scores: Mapping[str, list[PairScore]], rule: LabelRule
) -> LabelledPairs:
    from rerank_grpc.evaluation.calibrating.labelled import labelled, scored_pairs

    pairs, unscored = labelled(scored_pairs(collection.candidates, collection.qrels, scores), rule)
    if unscored:
        terminal.warn(f"left out {unscored:,} pairs whose documents have no text that could be scored")
    return pairs


def _model(asked: str, scorer: QueryScorer) -> CalibratedModel:
    """Describes the model that scores; raises RerankError, or ConfigurationError where too little is told."""
    info = scorer.info()
    if info.scoring is None or info.revision != scorer.identity.revision:
        raise ConfigurationError(f"the server has unloaded or replaced model {info.name}: run it once more")
    try:
        return CalibratedModel(
            name=asked or info.name,
            hub_id=info.hub_id,
            revision=info.revision,
            family=info.family,
            scoring=info.scoring,
            precision=info.precision,
        )
    except BadField as error:  # a folder's name may hold anything
        raise ConfigurationError(f"model {one_line(asked or info.name)}: {error}") from None


def _fit_options(parsed: argparse.Namespace) -> FitOptions:
    from rerank_grpc.evaluation.calibrating.calibrate import FitOptions
    from rerank_grpc.evaluation.calibrating.thresholds import DEFAULT_AIMS, Aim

    aims = [Aim("precision", asked) for asked in parsed.for_precision]
    aims += [Aim("recall", asked) for asked in parsed.for_recall]
    return FitOptions(parsed.method, parsed.seed, aims or DEFAULT_AIMS)


def _print(fitted: FittedCalibration, output: Path, chart: Path) -> None:
    found = fitted.calibration
    screen = terminal.Screen.of(sys.stdout)
    for line in described(found, screen):
        print(line)
    for caution in cautions(found, separated=fitted.separated):
        terminal.warn(caution)
    print(f"\nwrote {output} and {chart}")
    name, given = shlex.quote(found.model.name), shlex.quote(f"{found.model.name}={output}")
    print(f"serve it: rerank-grpc serve --model {name} --calibration {given}")
