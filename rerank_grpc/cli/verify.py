"""`rerank-grpc verify`: checks scores on this machine, by known pairs, transformers' padded pass and fp32."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rerank_grpc.cli.compare import (
    HEAD,
    Comparison,
    Logits,
    Ranking,
    built_in_questions,
    compare,
    read_questions,
    row_of,
)
from rerank_grpc.cli.process import SERVER_EXTRA, needs
from rerank_grpc.cli.terminal import Screen, clip, printable, table
from rerank_grpc.config.allowance import provide_threads
from rerank_grpc.config.reading import read_settings
from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.errors import ConfigurationError, ModelLoadError
from rerank_grpc.types import Call, Document, RerankRequest, ScoredDocument, Scoring

if TYPE_CHECKING:
    from rerank_grpc.checkpoints.catalogue import Catalogue, KnownPair
    from rerank_grpc.models.base import ModelCard
    from rerank_grpc.registry.loading import Loader
    from rerank_grpc.reranker import Reranker

PROBE_QUERY = "how does a reranker score a document?"
SENTENCE = (
    "A cross-encoder reads the query and the document together and gives the pair one number; 熊猫吃竹子。"
)
AT_ONCE = 100  # documents of a query that are scored in one call
LENGTHS = (1, 3, 9, 20, 45, 90, 180, 350, 700)  # in words, from one to more than most models take


class Check(NamedTuple):
    """One comparison: its subject, both values, and the bound of their difference."""

    subject: str
    expected: float
    found: float
    bound: float

    @property
    def difference(self) -> float:
        """The absolute difference."""
        return abs(self.found - self.expected)

    @property
    def passed(self) -> bool:
        """Whether the difference is within the bound; NaN never is."""
        return self.difference <= self.bound


def run(parsed: argparse.Namespace) -> int:
    """Verifies each model: 0 if all are right, else 1; raises ConfigurationError."""
    settings = read_settings(parsed.flags)
    provide_threads()
    questions = _questions(settings.precision, parsed.texts)
    with needs("verify", SERVER_EXTRA):
        from rerank_grpc.registry.loading import ModelLoader

        loader = ModelLoader(settings)
    # The command's own line says why a load failed; without a handler, Python would print the log's too.
    logging.getLogger("rerank_grpc").addHandler(logging.NullHandler())
    passed = []
    required = parsed.texts is not None
    for name in parsed.models:
        if required:
            _check_fp32(name, settings)
        passed.append(_verify(name, loader, loader.catalogue))
        if questions:
            passed.append(_compare(name, settings, questions, required=required))
    return 0 if all(passed) else 1


def _questions(precision: str, file: str | None) -> Sequence[Ranking]:
    """Reads what a lower precision is compared on; () where none is asked for by name."""
    if precision in ("auto", "fp32"):
        if file is not None:
            raise ConfigurationError(
                f"--texts: compares a lower precision with fp32, and --precision is {precision}: "
                "name bf16 or int8"
            )
        return ()
    return built_in_questions() if file is None else read_questions(file)


def _check_fp32(name: str, settings: ServerSettings) -> None:
    """Raises ModelLoadError if a GPU has too little free memory for a model in fp32."""
    from rerank_grpc.kernels.device import choose_device
    from rerank_grpc.registry.loading import ModelLoader
    from rerank_grpc.registry.memory import check_memory

    loader = ModelLoader(replace(settings, precision="fp32"))
    needed = loader.prepare(ModelSpec(name, name))
    check_memory(name, needed, "fp32", choose_device(settings.device), loader.catalogue)


def _verify(name: str, loader: Loader, catalogue: Catalogue) -> bool:
    screen, title = Screen.of(sys.stdout), printable(name)
    entry = catalogue.find(name) or catalogue.find(Path(name).name)
    pairs = entry.known if entry else ()
    with serving(name, loader) as (reranker, card):
        facts = [card.family, card.device, card.precision, card.attention_label, card.revision[:19]]
        print(f"{screen.paint(title, 'bold')}  {', '.join(facts)}\n", flush=True)
        checks = [*known(reranker, card, pairs), *padded(reranker, card)]
    for line in report(checks, screen) if checks else ():
        print(line)
    if note := _note(card, pairs):
        print(screen.paint(note, "dim"))
    right = sum(check.passed for check in checks)
    good = right == len(checks)  # of none, too: the load has compared it
    verdict = f"{right} of {len(checks)} are right" if checks else "right when it was loaded"
    print(screen.paint(f"\n{title}: {verdict}\n", "green" if good else "red", "bold"), flush=True)
    return good


def _compare(name: str, settings: ServerSettings, questions: Sequence[Ranking], *, required: bool) -> bool:
    """Compares a precision with fp32, and tells whether it holds.

    A model that cannot be loaded in fp32 raises ModelLoadError if the comparison
    is `required`; otherwise a line says why, and nothing is held against the model.
    """
    screen, title, asked = Screen.of(sys.stdout), printable(name), settings.precision
    documents = sum(len(question.documents) for question in questions)
    about = f"{asked} against fp32, queries: {len(questions)}, documents: {documents}"
    print(f"{screen.paint(title, 'bold')}  {about}\n", flush=True)
    expected = _logits_or_reason("fp32", name, settings, questions)
    if isinstance(expected, ModelLoadError):
        if required:
            raise expected
        print(screen.paint(f"not compared with fp32: {printable(str(expected))}\n", "dim"), flush=True)
        return True
    good = _holds(expected, name, settings, questions)
    verdict = f"{asked} {'holds' if good else 'is too far from fp32: use bf16 or fp32'}"
    print(screen.paint(f"\n{title}: {verdict}\n", "green" if good else "red", "bold"), flush=True)
    return good


def _holds(expected: Logits, name: str, settings: ServerSettings, questions: Sequence[Ranking]) -> bool:
    """Compares a precision with fp32's logits; a language model's int8-all as well, which decides nothing."""
    screen, asked = Screen.of(sys.stdout), settings.precision
    language, found = logits_in(asked, name, settings, questions)
    more = _logits_or_reason("int8-all", name, settings, questions) if language and asked == "int8" else None
    rows = {asked: compare(expected, found)}
    if isinstance(more, Sequence):
        rows["int8-all"] = compare(expected, more)
    _print_comparisons(rows, screen)
    if more is not None:
        print(screen.paint(_advice(more, rows.get("int8-all")), "dim"))
    return rows[asked].holds(asked)


def logits_in(
    precision: str, name: str, settings: ServerSettings, questions: Sequence[Ranking]
) -> tuple[bool, Logits]:
    """Loads a model in a precision for as long as it scores; tells whether it is a language model, too."""
    from rerank_grpc.models.bodies.llama import FAMILIES
    from rerank_grpc.registry.loading import ModelLoader

    with serving(name, ModelLoader(replace(settings, precision=precision))) as (reranker, card):
        logits = [_logits(reranker, question) for question in questions]
        return card.family in FAMILIES, logits


def _logits(reranker: Reranker, question: Ranking) -> list[float]:
    parts = [
        question.documents[place : place + AT_ONCE] for place in range(0, len(question.documents), AT_ONCE)
    ]
    return [result.logit for part in parts for result in scored(reranker, question.query, part)]


def _logits_or_reason(
    precision: str, name: str, settings: ServerSettings, questions: Sequence[Ranking]
) -> Logits | ModelLoadError:
    """Scores in a precision; returns why a model cannot be loaded in it if it cannot."""
    try:
        return logits_in(precision, name, settings, questions)[1]
    except ModelLoadError as error:
        return error


def _print_comparisons(rows: Mapping[str, Comparison], screen: Screen) -> None:
    head, *lines = table(HEAD, [row_of(*row) for row in rows.items()], screen)
    print(head)
    for line, (precision, compared) in zip(lines, rows.items(), strict=False):
        print(screen.paint(line, "green" if compared.holds(precision) else "red"))


def _advice(found: Logits | ModelLoadError, compared: Comparison | None) -> str:
    """Says whether a language model may be held in int8 wholly."""
    if compared is None:
        return f"int8-all does not hold: {found}"
    if compared.holds("int8-all"):
        return "int8-all holds on these texts, too: --precision int8-all is faster and takes less memory"
    return "int8-all does not hold on these texts: int8 leaves the down projections in bf16"


def _note(card: ModelCard, pairs: Sequence[KnownPair]) -> str:
    """Says what was not compared here; "" if all was."""
    from rerank_grpc.models.borrowed.padded import has_plain_reference

    if not has_plain_reference(card):
        return "no padded pass of such a model: compared with transformers' own pass when it was loaded"
    return "" if pairs else "no pairs with known scores: compared with the padded pass only"


@contextmanager
def serving(name: str, loader: Loader) -> Iterator[tuple[Reranker, ModelCard]]:
    """Loads a model and gives the reranker that a server would answer with; raises ModelLoadError."""
    from rerank_grpc.registry.registry import END_SECONDS
    from rerank_grpc.registry.warmup import finite_scores
    from rerank_grpc.reranker import build_reranker

    reranker = build_reranker(ServerSettings(models=(ModelSpec(name, name),)), loader)
    registry = reranker.registry
    registry.start()
    try:
        registry.wait_until_loaded()
        with registry.lease(name, Call()) as loaded, finite_scores(loaded.engine, loaded.card):
            yield reranker, loaded.card
    finally:
        registry.close(wait_seconds=END_SECONDS)


def known(reranker: Reranker, card: ModelCard, pairs: Sequence[KnownPair]) -> Iterator[Check]:
    """Scores the pairs whose logit or score is known."""
    _, logit_bound, score_bound = _bounds(card)
    for pair in pairs:
        (result,) = scored(reranker, pair.query, [pair.document])
        subject = f"{pair.query} | {pair.document}"
        if pair.logit is not None:
            yield Check(subject, pair.logit, result.logit, logit_bound)
        else:
            yield Check(subject, pair.score or 0.0, result.relevance_score, score_bound)


def padded(reranker: Reranker, card: ModelCard) -> Iterator[Check]:
    """Compares texts of many lengths, scored in one call, with transformers' padded pass in fp32.

    Compares nothing of a model without a plain reference.
    """
    from rerank_grpc.models.borrowed.padded import has_plain_reference, reference_logits

    if not has_plain_reference(card):
        return
    words = SENTENCE.split()
    texts = [" ".join(words[(place + count) % len(words)] for place in range(count)) for count in LENGTHS]
    expected = reference_logits(card, PROBE_QUERY, texts)
    found = scored(reranker, PROBE_QUERY, texts)
    spread = 1.0 if card.scoring is Scoring.COSINE else max(1.0, max(expected) - min(expected))
    bound = _bounds(card)[0] * spread
    for count, logit, result in zip(LENGTHS, expected, found, strict=True):
        yield Check(f"padded pass, {count} words", logit, result.logit, bound)


def _bounds(card: ModelCard) -> tuple[float, float, float]:
    """Returns the bounds of a padded logit, by the spread, of a known logit, and of a known score."""
    # Precisions below fp32 round each product to 8 or 11 bits; docs/precision.md has what int8 takes of it.
    return (1e-4, 2e-3, 1e-3) if card.precision == "fp32" else (0.1, 0.2, 0.03)


def scored(reranker: Reranker, query: str, texts: Sequence[str]) -> list[ScoredDocument]:
    """Scores texts as a server would; the results are in the texts' order."""
    response = reranker.rerank(RerankRequest(query, tuple(map(Document, texts))))
    return sorted(response.results, key=attrgetter("index"))


def report(checks: Sequence[Check], screen: Screen) -> Iterable[str]:
    """Lays the checks out, the wrong ones in red."""
    width = max(20, (screen.width or 100) - 50)
    rows = [
        (
            clip(printable(check.subject), width),
            f"{check.expected:.6f}",
            f"{check.found:.6f}",
            f"{check.difference:.1e}",
            f"{check.bound:.0e}",
            "ok" if check.passed else "WRONG",
        )
        for check in checks
    ]
    head, *lines = table(("pair", "expected", "found", "difference", "allowed", ""), rows, screen)
    yield head
    for line in lines:
        style = "red" if line.endswith("WRONG") else "green" if line.endswith("ok") else ""
        yield screen.paint(line, style) if style else line
