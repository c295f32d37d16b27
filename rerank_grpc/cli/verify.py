"""Checks scores on the user's own hardware: known pairs, and the packed pass against the padded one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerank_grpc.cli.terminal import Screen, clip, printable, table
from rerank_grpc.config import Settings, read_settings
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.types import Scoring

if TYPE_CHECKING:
    from rerank_grpc.checkpoints.catalogue import Catalogue, KnownPair
    from rerank_grpc.models.base import Model

QUERY = "how does a reranker score a document?"
SENTENCE = (
    "A cross-encoder reads the query and the document together and gives the pair one number; 熊猫吃竹子。"
)
# From one word to more than most models take.
WORDS = (1, 3, 9, 20, 45, 90, 180, 350, 700)
# How far logits may differ from the padded pass in fp32, as a part of how far those lie apart.
PADDED = {"fp32": 1e-4}
# How far the logit and the score of a known pair may be off.
KNOWN = {"fp32": (2e-3, 1e-3)}
# Other precisions round each product to 8 or 11 bits.
ROUNDED = 0.1
ROUNDED_KNOWN = (0.2, 0.03)


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: what, with what was expected, what was found, and how far they may differ."""

    what: str
    expected: float
    found: float
    bound: float

    @property
    def difference(self) -> float:
        """How far the two lie apart."""
        return abs(self.found - self.expected)

    @property
    def passed(self) -> bool:
        """Whether that is near enough; NaN never is."""
        return self.difference <= self.bound


def run(parsed: argparse.Namespace) -> int:
    """Verifies each model: 0 if all are right, else 1; raises ModelLoadError."""
    settings = read_settings(parsed.flags)
    from rerank_grpc.checkpoints.catalogue import read_catalogue

    catalogue, screen = read_catalogue(settings.catalogue), Screen.of(sys.stdout)
    passed = [_verify(name, settings, catalogue, screen) for name in parsed.models]
    return 0 if all(passed) else 1


def _verify(name: str, settings: Settings, catalogue: Catalogue, screen: Screen) -> bool:
    from rerank_grpc.models.loader import load_model

    model = load_model(
        name,
        models_dir=settings.models_dir,
        device=settings.device,
        precision=settings.precision,
        catalogue=catalogue,
    )
    card = model.card
    facts = f"{card.family}, {card.device}, {card.precision}, {card.attention.label}, {card.revision[:19]}"
    print(f"{screen.paint(printable(name), 'bold')}  {facts}\n", flush=True)
    entry = catalogue.describing(name)
    checks = [*known(model, entry.known if entry else ()), *padded(model)]
    for line in report(checks, screen):
        print(line)
    if not entry or not entry.known:
        print(screen.paint("no pairs with known scores: compared with the padded pass only", "dim"))
    right = sum(check.passed for check in checks)
    good = bool(checks) and right == len(checks)
    verdict = f"{right} of {len(checks)} are right" if checks else "nothing could be compared"
    print(screen.paint(f"\n{printable(name)}: {verdict}\n", "green" if good else "red", "bold"), flush=True)
    return good


def known(model: Model, pairs: Sequence[KnownPair]) -> Iterable[Check]:
    """Scores the pairs whose logit or score is known."""
    from rerank_grpc.scores import relevance_scores

    of_logit, of_score = KNOWN.get(model.card.precision, ROUNDED_KNOWN)
    for pair in pairs:
        (logit,) = logits(model, pair.query, [pair.document])
        what = f"{pair.query} | {pair.document}"
        if pair.logit is not None:
            yield Check(what, pair.logit, logit, of_logit)
        else:
            (score,) = relevance_scores([logit], model.card.scoring)
            yield Check(what, pair.score or 0.0, score, of_score)


def padded(model: Model) -> Iterable[Check]:
    """Compares texts of many lengths, scored together, with transformers' padded pass in fp32."""
    from rerank_grpc.models.padded import reference_logits

    card = model.card
    if card.prompt is not None:
        return  # a language model's prompt is its card's own code, which is compared in the tests
    texts = documents()
    expected = reference_logits(card, QUERY, texts)
    found = logits(model, QUERY, texts)
    spread = 1.0 if card.scoring is Scoring.COSINE else max(1.0, max(expected) - min(expected))
    bound = PADDED.get(card.precision, ROUNDED) * spread
    for words, want, got in zip(WORDS, expected, found, strict=True):
        yield Check(f"padded pass, {words} words", want, got, bound)


def documents() -> list[str]:
    """Texts from one word to more than most models take."""
    words = SENTENCE.split()
    return [" ".join(words[(place + count) % len(words)] for place in range(count)) for count in WORDS]


def logits(model: Model, query: str, texts: Sequence[str]) -> list[float]:
    """Scores texts in one packed pass."""
    from rerank_grpc.runner.cuda import runner_for
    from rerank_grpc.scores import best_chunk, logits_of
    from rerank_grpc.sequence import PackedBatch
    from rerank_grpc.tokenizer.tokenizer import encoder_for

    encoded = encoder_for(model.card).encode(query, texts)
    outputs = runner_for(model).run(PackedBatch(encoded.sequences))
    if any(output is None for output in outputs):
        raise ConfigurationError(f"{model.card.source}: a score is not finite: the weights are damaged")
    logit_of = logits_of(outputs, encoded.query)
    return [best_chunk(document, logit_of)[1] for document in encoded.documents]


def report(checks: Sequence[Check], screen: Screen) -> Iterable[str]:
    """Lays the checks out, the wrong ones in red."""
    room = max(20, (screen.width or 100) - 50)
    rows = [
        (
            clip(printable(check.what), room),
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
