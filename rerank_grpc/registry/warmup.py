"""Runs a new engine before its first call: warms caches, sets the batch budget, measures costs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import exp
from operator import attrgetter
from statistics import NormalDist
from time import monotonic, process_time

import torch

from rerank_grpc.engine.engine import Engine
from rerank_grpc.engine.meter import NO_TIME, Counts
from rerank_grpc.errors import InternalError, ModelLoadError, RerankError
from rerank_grpc.kept import Kept
from rerank_grpc.models.base import ModelCard
from rerank_grpc.registry.budget import SMALLEST_BATCH_TOKENS, Choice, Cost, KeptBudget, choose, measure
from rerank_grpc.registry.memory import BatchMemory
from rerank_grpc.sequence import Sequence
from rerank_grpc.tokenizer.tokenizer import Tokenizer
from rerank_grpc.types import Call, Document, Priority, RerankRequest

log = logging.getLogger("rerank_grpc.registry")

PROBE_QUERY = "how does a reranker score a document?"
FILLER = "It reads the query and the document together and gives the pair one number. "

SHORT_TOKENS = 16
LONGEST_TOKENS = 512  # the longest that a language model takes costs minutes on a CPU
# Passages as a search finds them: the quantiles of a log-normal distribution of mean 138, in mixed order.
PASSAGES = [round(exp(NormalDist(4.75, 0.6).inv_cdf((5 * n % 16 + 0.5) / 16))) for n in range(16)]

RUNS = 3
COST_SECONDS = 0.4  # after which the cost of a full batch is not measured again
IDLE_SECONDS = 10.0  # without a call, until a disturbed measurement is made again; doubled where that is, too
MOST_CORRECTIONS = 6


class CallArrived(Exception):
    """A caller needs the engine that is being measured."""


def warm_up(engine: Engine, tokenizer: Tokenizer, card: ModelCard, kept: Kept | None = None) -> None:
    """Scores a long and a short document, sets the batch budget unless it is configured, measures costs.

    A budget that an earlier start kept is taken at once. One that was measured while other processes were
    busy is measured again when the engine is idle. Raises the errors of an ordinary call, so a model that
    cannot score is never READY.
    """
    probe = EngineProbe(engine, tokenizer, card)
    for tokens in (min(card.max_tokens, LONGEST_TOKENS), SHORT_TOKENS):
        probe.run(probe.documents(tokens, count=1))
    if engine.settings.max_batch_tokens is None:
        _set_budget(probe, KeptBudget(card, kept) if kept else None)
    smallest = probe.cheapest(probe.documents(SHORT_TOKENS, count=1))
    engine.calibrate(smallest, probe.cheapest(probe.passages(engine.max_batch_tokens)))


@contextmanager
def finite_scores(engine: Engine, card: ModelCard) -> Iterator[None]:
    """Makes the error of a score that is not finite a ModelLoadError, whose text is the operator's."""
    try:
        yield
    except InternalError as error:
        if not engine.not_finite:
            raise
        raise ModelLoadError(f"{card.source}: a score is not finite: the weights are damaged") from error


class EngineProbe:
    """Documents of its own that it runs through an engine, and what they cost."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, card: ModelCard) -> None:
        self.engine = engine
        self.memory = BatchMemory(torch.device(card.device))
        self._tokenizer = tokenizer
        self._on_cpu = card.device == "cpu"
        self._batches: dict[int, tuple[Sequence, ...]] = {}

    def documents(self, tokens: int, *, count: int) -> tuple[Sequence, ...]:
        """Makes documents that are cut at a length; a query that is a sequence of its own is left out."""
        documents = [Document(f"{number} {FILLER * (1 + tokens // 12)}") for number in range(count)]
        request = RerankRequest(PROBE_QUERY, documents, max_tokens_per_document=tokens)
        made = self._tokenizer.tokenize(request)
        return tuple([each for index, each in enumerate(made.sequences) if index != made.query])

    def passages(self, budget: int) -> tuple[Sequence, ...]:
        """Makes passages of the usual lengths that nearly fill a batch."""
        if budget not in self._batches:
            count = 1 + budget // sum(PASSAGES)
            by_length = [self.documents(tokens, count=count) for tokens in PASSAGES]
            chosen, free = list[Sequence](), budget
            for sequence in (each[turn] for turn in range(count) for each in by_length):
                if len(sequence) <= free or not chosen:
                    chosen.append(sequence)
                    free -= len(sequence)
            self._batches[budget] = tuple(chosen)
        return self._batches[budget]

    def run(self, sequences: tuple[Sequence, ...], priority: Priority = Priority.INTERACTIVE) -> Counts:
        """Runs sequences; returns the device's use."""
        before = self.engine.counts
        with self.engine.admit(Call(), priority) as admission:
            admission.submit(sequences).wait()
        return self.engine.counts.since(before)

    def cheapest(self, sequences: tuple[Sequence, ...]) -> Counts:
        """Runs sequences several times, a slow batch once; returns the device's use in the best run."""
        runs, started = [self.run(sequences)], monotonic()
        while len(runs) < RUNS and monotonic() - started + runs[0].busy_seconds < COST_SECONDS:
            runs.append(self.run(sequences))
        return min(runs, key=attrgetter("busy_seconds"))

    def sample(self, budget: int) -> Cost:
        """Runs one batch of a budget, which the engine keeps until another is set."""
        sequences = self.passages(budget)
        self.engine.max_batch_tokens = budget
        started, used = monotonic(), process_time()
        counts = self.run(sequences, Priority.BATCH)
        passed, used = monotonic() - started, process_time() - used
        self.memory.measured(budget)
        seconds = used / torch.get_num_threads() if self._on_cpu else counts.busy_seconds
        return Cost(counts.tokens, max(NO_TIME, seconds), max(NO_TIME, passed))


def _set_budget(probe: EngineProbe, kept: KeptBudget | None) -> None:
    """Sets the budget that was kept as far as it fits the memory, or measures it and keeps it."""
    choice = kept.read() if kept else None
    if choice:
        probe.sample(SMALLEST_BATCH_TOKENS)
        tokens = choice.tokens
        while tokens > SMALLEST_BATCH_TOKENS and not probe.memory.fits(tokens):
            tokens //= 2
        choice = choice._replace(tokens=tokens)
    else:
        choice = choose(measure(probe.sample, probe.memory.fits))
        if kept:
            kept.write(choice)
    _take(probe.engine, choice)
    if choice.disturbed and kept:
        probe.engine.accompany(lambda: correct(probe, choice, kept))


def _take(engine: Engine, choice: Choice) -> None:
    engine.max_batch_tokens = choice.tokens
    again = "; other processes disturbed that: measured again when idle" if choice.disturbed else ""
    log.info("model %s: batches of %d tokens (%s%s)", engine.name, choice.tokens, choice.reason, again)


def correct(probe: EngineProbe, choice: Choice, kept: KeptBudget, idle_seconds: float = IDLE_SECONDS) -> None:
    """Measures again once no call has come for a while, until nothing disturbs it; keeps what it finds.

    A call that comes meanwhile waits for the running batch, as for that of another call. The engine's budget
    is left alone after it ran out of memory.
    """
    engine, corrections = probe.engine, 0
    while corrections < MOST_CORRECTIONS and _idles(engine, idle_seconds):
        if engine.max_batch_tokens != choice.tokens:
            return
        try:
            found = _measured_idle(probe, choice.tokens)
        except CallArrived:
            continue
        except RerankError:  # the engine ended
            return
        if not found.disturbed:
            kept.write(found)
            _take(engine, found)
            return
        corrections += 1
        idle_seconds *= 2


def _measured_idle(probe: EngineProbe, tokens: int) -> Choice:
    """Measures the budgets of an idle engine, and leaves it with one of `tokens`; raises CallArrived."""
    engine = probe.engine
    calls = engine.calls

    def sample(budget: int) -> Cost:
        nonlocal calls
        if engine.calls != calls:
            raise CallArrived
        cost = probe.sample(budget)
        calls += 1
        return cost

    try:
        found = choose(measure(sample, probe.memory.fits))
        if engine.calls != calls:
            raise CallArrived
        return found
    finally:
        engine.max_batch_tokens = tokens


def _idles(engine: Engine, seconds: float) -> bool:
    """Waits until an engine has had no call for so long; false once it has ended."""
    calls = -1
    while calls != engine.calls or not engine.idle:
        calls = engine.calls
        if engine.wait_for_end(seconds):
            return False
    return True
