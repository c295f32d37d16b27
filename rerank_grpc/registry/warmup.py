"""Runs a new engine before its first call: warms caches, sets the batch budget, measures costs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import exp
from operator import attrgetter
from random import uniform
from statistics import NormalDist
from time import monotonic, process_time

import torch

from rerank_grpc.engine.engine import Engine
from rerank_grpc.engine.meter import NO_TIME, Counts
from rerank_grpc.errors import InternalError, ModelLoadError, RerankError
from rerank_grpc.kept import Kept
from rerank_grpc.models.base import ModelCard
from rerank_grpc.registry.budget import (
    LARGEST_BATCH_TOKENS,
    SMALLEST_BATCH_TOKENS,
    Choice,
    Cost,
    KeptBudget,
    choose,
    measure,
)
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

RERUN_SECONDS = 1.0, 0.3  # after which the cost of a batch is not measured a second, and a third time
IDLE_SECONDS = 10.0  # without a call, until a disturbed measurement is made again; doubled each time
LONGEST_DELAY = 1.5  # times that, drawn anew: two engines that waited as long would measure beside each other
MOST_CORRECTIONS = 6


class CallArrived(Exception):
    """A caller needs the engine that is being measured, or one on its device."""


def warm_up(
    engine: Engine,
    tokenizer: Tokenizer,
    card: ModelCard,
    kept: Kept | None = None,
    token_bytes: float = 0.0,
) -> None:
    """Scores a long and a short document, sets the batch budget unless it is configured, measures costs.

    A budget that an earlier start kept is taken at once. One that was measured while other processes or
    engines were busy is measured again when the device is idle. On a CPU a batch is expected to take so many
    `token_bytes` for each token. Raises the errors of an ordinary call, so a
    model that cannot score is never READY.
    """
    probe = EngineProbe(engine, tokenizer, card, token_bytes)
    for tokens in (min(card.max_tokens, LONGEST_TOKENS), SHORT_TOKENS):
        probe.run(probe.documents(tokens, count=1))
    if engine.settings.max_batch_tokens is None:
        _set_budget(probe, KeptBudget(card, kept) if kept else None)
    _measure_costs(probe)


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

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, card: ModelCard, token_bytes: float = 0.0
    ) -> None:
        self.engine = engine
        self.memory = BatchMemory(torch.device(card.device), token_bytes)
        self._tokenizer = tokenizer
        self._on_cpu = card.device == "cpu"
        self._batches: dict[int, tuple[Sequence, ...]] = {}
        self._budget = engine.max_batch_tokens  # as it was set last
        self._limit = LARGEST_BATCH_TOKENS
        self._expected: tuple[int, float] | None = None  # the engine's calls and shared seconds, if it yields

    @property
    def limit(self) -> int:
        """The largest budget that the memory may hold: less once the engine lowered one after it ran out."""
        lowered = self.engine.max_batch_tokens
        if lowered < self._budget:
            # Half of a nearly full batch is a nearly full one of half the budget, a power of two.
            self._budget, self._limit = lowered, min(self._limit, 1 << (lowered - 1).bit_length())
        return self._limit

    def set_budget(self, tokens: int) -> None:
        """Sets the engine's budget, to the limit at most."""
        self.engine.max_batch_tokens = min(tokens, self.limit)
        self._budget = self.engine.max_batch_tokens

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
        """Runs sequences; returns the device's use. Raises CallArrived if one came while it is `yielding`."""
        before = self.engine.counts
        self._yield_to_calls()
        with self.engine.admit(Call(), priority) as admission:
            admission.submit(sequences).wait()
        self._yield_to_calls(own=1)
        return self.engine.counts.since(before)

    @contextmanager
    def yielding(self) -> Iterator[None]:
        """Ends the measurement within at the first batch beside which a call came, by CallArrived."""
        self._expected = self.engine.calls, self.engine.shared_seconds
        try:
            yield
        finally:
            self._expected = None

    def _yield_to_calls(self, own: int = 0) -> None:
        if self._expected is not None:
            calls, shared_seconds = self._expected
            self._expected = calls + own, shared_seconds
            if self._expected != (self.engine.calls, self.engine.shared_seconds):
                raise CallArrived

    def cheapest(self, sequences: tuple[Sequence, ...]) -> Counts:
        """Runs sequences up to three times, fewer if they are slow; returns the use of the best run."""
        started, runs = monotonic(), [self.run(sequences)]
        for limit in RERUN_SECONDS:
            if monotonic() - started <= limit:
                runs.append(self.run(sequences))
        return min(runs, key=attrgetter("busy_seconds"))

    def best_budget(self) -> Choice:
        """Measures the budgets, which leaves the engine with any of them, and chooses one."""
        choice = choose(measure(self.sample, self.memory.fits))
        return choice._replace(tokens=min(choice.tokens, self.limit))

    def sample(self, budget: int) -> Cost:
        """Runs one batch of a budget, which the engine keeps until another is set."""
        sequences, shared_seconds = self.passages(budget), self.engine.shared_seconds
        self.set_budget(budget)
        started, used = monotonic(), process_time()
        counts = self.run(sequences, Priority.BATCH)
        passed, used = monotonic() - started, process_time() - used
        self.memory.measured(budget)
        seconds = used / torch.get_num_threads() if self._on_cpu else counts.busy_seconds
        alone = self.engine.shared_seconds == shared_seconds
        return Cost(counts.tokens, max(NO_TIME, seconds), max(NO_TIME, passed), alone, budget <= self.limit)


def _measure_costs(probe: EngineProbe) -> None:
    smallest = probe.cheapest(probe.documents(SHORT_TOKENS, count=1))
    probe.engine.calibrate(smallest, probe.cheapest(probe.passages(probe.engine.max_batch_tokens)))


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
        choice = probe.best_budget()
        if kept:
            kept.write(choice)
    _take(probe, choice)
    if choice.disturbed and kept:
        probe.engine.accompany(lambda: correct(probe, choice, kept))


def _take(probe: EngineProbe, choice: Choice) -> None:
    probe.set_budget(choice.tokens)
    again = "; others disturbed that: measured again when idle" if choice.disturbed else ""
    log.info("model %s: batches of %d tokens (%s%s)", probe.engine.name, choice.tokens, choice.reason, again)


def correct(probe: EngineProbe, choice: Choice, kept: KeptBudget, idle_seconds: float = IDLE_SECONDS) -> None:
    """Measures again once the device has been idle, until nothing disturbs that; keeps what it finds.

    A call that comes meanwhile waits for the running batch, as for that of another call, and ends the
    attempt. The number of attempts is limited, and each waits twice as long as the one before. The engine's
    budget is left alone after it ran out of memory.
    """
    for _ in range(MOST_CORRECTIONS):
        if not _idles(probe.engine, idle_seconds) or probe.engine.max_batch_tokens != choice.tokens:
            return
        try:
            found = _measured_idle(probe, choice)
        except CallArrived:
            found = choice
        except RerankError:  # the engine ended
            return
        if not found.disturbed:
            kept.write(found)
            _take(probe, found)
            return
        idle_seconds *= 2


def _measured_idle(probe: EngineProbe, choice: Choice) -> Choice:
    """Measures the budgets of an idle engine, and the costs unless disturbed; raises CallArrived.

    The engine's budget stays that of the earlier choice. A share of the processor as small as at that time,
    now that the device is idle, is all that the machine gives: a quota, or little to run side by side.
    """
    try:
        with probe.yielding():
            found = probe.best_budget()
            if found.disturbed and found.has_share_of(choice):
                found = found._replace(disturbed=False)
            if not found.disturbed:
                probe.set_budget(found.tokens)
                _measure_costs(probe)
            return found
    finally:
        probe.set_budget(choice.tokens)


def _idles(engine: Engine, seconds: float) -> bool:
    """Waits until no engine of the device has had a batch for so long; false once this one has ended."""
    seconds *= uniform(1, LONGEST_DELAY)
    while (rest := seconds - engine.idle_seconds) > 0:
        if engine.wait_for_end(rest):
            return False
    return engine.alive
