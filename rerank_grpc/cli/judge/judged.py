"""The arguments of commands that read a judged collection and score it, and what they mean."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rerank_grpc.cli import terminal
from rerank_grpc.cli.ask import connect
from rerank_grpc.cli.process import SERVER_EXTRA, needs
from rerank_grpc.config.allowance import provide_threads
from rerank_grpc.config.options import OptionError
from rerank_grpc.config.reading import names_server, read_settings
from rerank_grpc.errors import ConfigurationError, RerankError

if TYPE_CHECKING:
    from rerank_grpc.evaluation.collection import Collection, CollectionFiles
    from rerank_grpc.evaluation.journal import ScoredQuery
    from rerank_grpc.evaluation.problems import Problems
    from rerank_grpc.evaluation.scorers import QueryScorer

EVAL_EXTRA = 'pip install "rerank-grpc[eval]"'


def whole_number(text: str) -> int:
    """Reads a whole number above 0."""
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


COLLECTION_ARGUMENTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    (
        "--beir",
        {"metavar": "DIR", "help": "a folder in BEIR's form: queries.jsonl, corpus.jsonl, qrels/*.tsv"},
    ),
    ("--split", {"metavar": "NAME", "help": "the judgements of --beir: qrels/NAME.tsv (default: test)"}),
    ("--queries", {"metavar": "FILE", "help": "queries: .jsonl of _id and text, or .tsv of id and text"}),
    ("--corpus", {"metavar": "FILE", "help": "documents, in one of the same forms; a title goes first"}),
    (
        "--qrels",
        {"metavar": "FILE", "help": "judgements: TREC's four columns, or BEIR's three below a header"},
    ),
    ("--run", {"metavar": "FILE", "dest": "run_file", "help": "candidates: a run in TREC's six columns"}),
    (
        "--candidates",
        {
            "metavar": "N",
            "type": whole_number,
            "help": "score the first N of each query; without --run, BM25 finds so many (default: all of "
            "the run, or 100)",
        },
    ),
)
SCORING_ARGUMENTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    (
        "--instruction",
        {"metavar": "TEXT", "default": "", "help": "what a model is to judge, if it takes that"},
    ),
    (
        "--concurrency",
        {"metavar": "N", "type": whole_number, "help": "calls at once (default: 8 to a server, 1 here)"},
    ),
)
ScorerFactory: TypeAlias = "Callable[[str], AbstractContextManager[QueryScorer]]"


def files_of(parsed: argparse.Namespace) -> CollectionFiles:
    """Finds a collection's files; raises OptionError for a wrong choice of options."""
    from rerank_grpc.evaluation.collection import CollectionFiles

    run = Path(parsed.run_file) if parsed.run_file else None
    singly = [name for name in ("queries", "corpus", "qrels") if getattr(parsed, name)]
    if parsed.beir:
        if singly:
            raise OptionError(f"--beir has its own {singly[0]}: leave out --{singly[0]}, or --beir")
        return CollectionFiles.of_beir(Path(parsed.beir), parsed.split or "test", run)
    if parsed.split:
        raise OptionError("--split names judgements of --beir, which is not given")
    missing = [f"--{name}" for name in ("queries", "corpus", "qrels") if name not in singly]
    if missing:
        raise OptionError(
            f"a collection is --beir DIR, or --queries, --corpus and --qrels: {missing[0]} is missing"
        )
    return CollectionFiles(Path(parsed.queries), Path(parsed.corpus), Path(parsed.qrels), run)


def traced(files: CollectionFiles, candidates: int | None) -> dict[str, Any]:
    """Tells for the record where candidates come from, and the files by their names without a path."""
    from rerank_grpc.evaluation.retrieval import CANDIDATES

    named = {"queries": files.queries, "corpus": files.corpus, "qrels": files.qrels, "run": files.run}
    return {
        "candidates_from": "run" if files.run else "BM25",
        "candidates": candidates or (None if files.run else CANDIDATES),
        "files": {what: path.name for what, path in named.items() if path is not None},
    }


def read_judged(parsed: argparse.Namespace) -> tuple[Collection, Problems]:
    """Reads the collection that the arguments name, and prints what was left out of it.

    Raises OptionError, or ConfigurationError for its files.
    """
    from rerank_grpc.evaluation.collection import read_collection
    from rerank_grpc.evaluation.retrieval import CANDIDATES

    files = files_of(parsed)
    if files.run is None:
        with needs("BM25", EVAL_EXTRA):
            import bm25s  # noqa: F401  # missing here, they are told before any work
            import tqdm  # noqa: F401
    collection, problems = read_collection(
        files, candidates=parsed.candidates or CANDIDATES, show_progress=sys.stderr.isatty()
    )
    for line in problems.lines():
        terminal.warn(line)
    return collection.cut(parsed.candidates) if parsed.candidates else collection, problems


@contextmanager
def scorers_of(parsed: argparse.Namespace, models: Sequence[str] = ()) -> Iterator[ScorerFactory]:
    """Gives a function from a model's name to its scorer: by --target's server, or by a model loaded here.

    Of several `models` each is looked for first, so that a wrong name costs no work of the others. Raises
    OptionError, RerankError, or ConfigurationError where a package or a model is missing.
    """
    several = models if len(models) > 1 else ()
    if names_server(parsed.flags):
        from rerank_grpc.evaluation.scorers import CONCURRENCY, ServerScorer, server_scorer

        with connect(parsed) as client:
            for each in several:
                ServerScorer(client, each, instruction=parsed.instruction)
            yield lambda model: server_scorer(
                client, model, instruction=parsed.instruction, concurrency=parsed.concurrency or CONCURRENCY
            )
        return
    settings = read_settings(parsed.flags)
    provide_threads()
    with needs("a model that is loaded here", f"{SERVER_EXTRA}, or ask a server by --target"):
        import torch  # noqa: F401
    from rerank_grpc.evaluation.scorers import bring, loaded_scorer

    bring(several, settings)
    yield lambda source: loaded_scorer(
        source or "embedded", settings, instruction=parsed.instruction, concurrency=parsed.concurrency or 1
    )


def scored_queries(
    collection: Collection, scorer: QueryScorer, folder: Path, instruction: str
) -> dict[str, ScoredQuery]:
    """Has a model score what its journal in a folder lacks, and returns all of it by query.

    A bar shows how far it is, where stderr is a terminal. Raises ConfigurationError where it cannot go on.
    """
    from tqdm import tqdm

    from rerank_grpc.evaluation.journal import ScoreJournal, stem_of
    from rerank_grpc.evaluation.scoring import score_all

    identity = scorer.identity
    begun = {"collection": collection.digest, **identity._asdict(), "instruction": instruction}
    begun["model"] = begun.pop("name")
    journal = ScoreJournal(folder / f"{stem_of(identity.name)}.scores.jsonl", begun)
    total = sum(map(bool, collection.candidates.values()))
    bar = tqdm(
        total=total,
        initial=len(journal.done),
        desc=identity.name,
        unit="query",
        disable=None,
        file=sys.stderr,
    )
    try:
        with bar:
            score_all(collection, scorer, journal, bar.update)
    except RerankError as error:
        raise ConfigurationError(
            f"{error}: {len(journal.done):,} of {total:,} queries are scored; the same command goes on"
        ) from None
    finally:
        journal.close()
    return journal.done
