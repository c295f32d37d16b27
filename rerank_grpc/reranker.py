"""The path of a call: check, lease a model, tokenize, score, order, cut to top_n."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappush, heappushpop
from operator import attrgetter
from time import monotonic

from rerank_grpc.access.rates import Rates
from rerank_grpc.calibration.calibration import Calibration
from rerank_grpc.config.allowance import scaled
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.engine.engine import Admission
from rerank_grpc.engine.future import Future
from rerank_grpc.errors import UnsupportedOption
from rerank_grpc.gate import Gate, Permit
from rerank_grpc.limits import LIMITS, LOBBY_PARTS, blank_texts, check_request
from rerank_grpc.registry.loading import Loader, ModelLoader
from rerank_grpc.registry.needs import models_budget
from rerank_grpc.registry.registry import Lease, Registry
from rerank_grpc.registry.slot import LoadedModel
from rerank_grpc.scores import best_chunks, calibrated_scores, count_query_tokens, relevance_scores
from rerank_grpc.sequence import Chunk, TokenizedRequest, count_tokens
from rerank_grpc.telemetry.records import BatchSink
from rerank_grpc.tokenizer.pace import Pace, Turns
from rerank_grpc.types import (
    Call,
    RerankRequest,
    RerankResponse,
    RerankSummary,
    ScoredDocument,
    Scoring,
    Timeline,
    Usage,
)

NO_CHUNK = Chunk(-1, 0)


class Reranker:
    """Answers requests, from many threads at once; `lobby` bounds the calls that wait for a model to load.

    `rates` has what each caller may still send. With `blanks_last` no model scores a document without a
    visible character: it comes behind all others.
    """

    def __init__(
        self,
        registry: Registry,
        gate: Gate,
        lobby: Gate,
        rates: Rates | None = None,
        *,
        blanks_last: bool = False,
    ) -> None:
        self.registry = registry
        self.gate = gate
        self.lobby = lobby
        self.rates = rates or Rates()
        self._blanks_last = blanks_last
        self._turns = Turns()

    def rerank(
        self, request: RerankRequest, call: Call | None = None, *, kept: int = 0, charged: int | None = None
    ) -> RerankResponse:
        """Scores all documents and returns them by descending relevance; raises a RerankError.

        `kept` is the number of characters that the caller keeps in memory besides. `charged` documents count
        for its rate, without it the request's: of a call with several requests the first is charged for all.
        """
        with self._admitted(request, call or Call(), kept=kept, charged=charged) as job:
            job.future.wait()
            results = job.results(range(len(request.documents)))
            results.sort(key=attrgetter("logit"), reverse=True)  # stable: ties keep the caller's order
            if request.top_n:
                del results[request.top_n :]
            return RerankResponse(tuple(results), job.summary())

    def stream(
        self, request: RerankRequest, call: Call | None = None
    ) -> Iterator[list[ScoredDocument] | RerankSummary]:
        """Yields results as they are scored, and the summary at last; otherwise like `rerank`.

        With top_n, a result is left out unless it is among the best so far.
        """
        with self._admitted(request, call or Call(), stepwise=True) as job:
            best, unscored = _Best(request.top_n), _Unscored(job.tokenized)
            for sequences in job.future.completed():
                if results := best.kept(job.results(unscored.complete(sequences))):
                    yield results
            if unscored.left_out and (results := best.kept(job.results(unscored.left_out))):
                yield results
            yield job.summary()

    @contextmanager
    def _admitted(
        self,
        request: RerankRequest,
        call: Call,
        *,
        stepwise: bool = False,
        kept: int = 0,
        charged: int | None = None,
    ) -> Iterator[_Job]:
        """Takes a request to the device's queue, and out of it when a `with` statement ends.

        The permit goes back as soon as the scores are there: a stream's caller may read late or never.
        """
        timeline = call.enter()
        charged = len(request.documents) if charged is None else charged
        lease, permit = self._enter(request, call, kept, timeline, charged)
        with permit, lease as model, self._admit(model, call, request, charged) as admission:
            timeline.admitted = monotonic()
            left_out = blank_texts(request.documents) if self._blanks_last else ()
            try:
                if request.min_calibrated_score is not None and model.calibration is None:
                    request = _without_calibration(request)
                tokenized = model.tokenizer.tokenize(request, Pace(self._turns, call.check), left_out)
            except UnsupportedOption as error:
                error.metadata["model"] = model.name
                raise
            timeline.tokenized = monotonic()
            if call.caller.rate is not None:
                self.rates.charge_tokens(call.caller, count_tokens(tokenized.sequences))
            future = admission.submit(tokenized.sequences, stepwise=stepwise)
            future.on_done(permit.leave)
            try:
                yield _Job(request, model, tokenized, future, timeline.tokenized - timeline.admitted)
            finally:
                _complete(timeline, tokenized, future)

    def _enter(
        self, request: RerankRequest, call: Call, kept: int, timeline: Timeline, charged: int
    ) -> tuple[Lease, Permit]:
        """Leases the model, then passes the gate: a call that waits for a model to load holds no permit."""
        timeline.model = self.registry.configured_name(request.model)
        call.caller.require_model(timeline.model)
        name = call.caller.name
        if call.caller.rate is not None:
            self.rates.enter(call.caller, charged)
        lease: Lease | None = None
        try:
            characters = check_request(request) + kept
            lease = self.registry.lease_now(request.model)
            if lease is None:
                with self.lobby.enter(characters, name):
                    lease = self.registry.lease(request.model, call)
            return lease, self.gate.enter(characters, name)
        except BaseException:
            if lease is not None:
                lease.leave()
            self.rates.give_back(call.caller, charged)
            raise

    def _admit(self, model: LoadedModel, call: Call, request: RerankRequest, charged: int) -> Admission:
        """Enters the model's engine; a call that finds its queue full was charged for nothing."""
        try:
            return model.engine.admit(call, request.priority)
        except BaseException:
            self.rates.give_back(call.caller, charged)
            raise


def build_reranker(
    settings: ServerSettings,
    loader: Loader | None = None,
    *,
    on_change: Callable[[], None] = lambda: None,
    on_hang: Callable[[], None] = lambda: None,
    on_batch: BatchSink | None = None,
) -> Reranker:
    """Makes a reranker, its registry not yet started.

    Raises ConfigurationError for a catalogue or a calibration that cannot be read.
    """
    # Calls that wait hold worker threads: half of those stay for models that are READY.
    waiting, characters = max(1, settings.max_calls // 2), scaled(LIMITS.characters_inside)
    registry = Registry(
        settings.models,
        loader or ModelLoader(settings),
        budget=models_budget(settings),
        idle_seconds=settings.idle_seconds,
        max_waiting=waiting,
        on_change=on_change,
        on_hang=on_hang,
        on_batch=on_batch,
    )
    gate, lobby = Gate(settings.max_calls, characters), Gate(waiting, characters // LOBBY_PARTS)
    return Reranker(registry, gate, lobby, blanks_last=settings.blank_documents == "last")


def _without_calibration(request: RerankRequest) -> RerankRequest:
    """Leaves out the bound that a model without a calibration cannot keep; raises UnsupportedOption."""
    if not request.ignore_unsupported_options:
        text = "this model has no calibration: leave it out, or start the server with --calibration"
        raise UnsupportedOption.of("min_calibrated_score", text, metadata={"option": "min_calibrated_score"})
    return request._replace(min_calibrated_score=None)


def _complete(timeline: Timeline, tokenized: TokenizedRequest, future: Future) -> None:
    """Notes what became of a request's sequences."""
    timeline.started, timeline.finished = future.started_at, future.finished_at
    timeline.documents = len(tokenized.documents)
    timeline.truncated = sum(map(attrgetter("truncated"), tokenized.documents))
    timeline.pairs, timeline.tokens = len(future.sequences), future.tokens
    timeline.shared, timeline.batches = future.shared, future.batches


@dataclass(frozen=True, slots=True)
class _Job:
    """One admitted request on its way to a response."""

    request: RerankRequest
    model: LoadedModel
    tokenized: TokenizedRequest
    future: Future
    tokenization_seconds: float

    def results(self, indices: Sequence[int]) -> list[ScoredDocument]:
        """Makes the results of scored documents, without those below the request's least scores."""
        documents = list(map(self.tokenized.documents.__getitem__, indices))
        card, outputs, query = self.model.card, self.future.outputs, self.tokenized.query
        mean = card.late is not None and card.late.mean
        summed = card.scoring is Scoring.MAXSIM and not mean
        best = best_chunks(documents, outputs, query, mean=mean)
        scores = relevance_scores(
            map(attrgetter("logit"), best),
            card.scoring,
            scale=card.scale,
            offset=card.offset,
            query_tokens=count_query_tokens(outputs, query) if summed else 1,
        )
        (least,) = array("f", [self.request.min_relevance_score or 0])  # rounded as the scores are
        results = []
        for index, (chunks, truncated), (position, logit), score in zip(
            indices, documents, best, scores, strict=True
        ):
            if score >= least:
                source = self.request.documents[index]
                _, tokens, span = chunks[position] if chunks else NO_CHUNK
                document = source if self.request.return_documents else None
                results.append(
                    ScoredDocument(index, score, logit, source.id, document, tokens, truncated, span)
                )
        return (
            results if self.model.calibration is None else self._calibrated(results, self.model.calibration)
        )

    def _calibrated(
        self, results: Sequence[ScoredDocument], calibration: Calibration
    ) -> list[ScoredDocument]:
        scores = calibrated_scores([result.logit for result in results], calibration)
        (least,) = array("f", [self.request.min_calibrated_score or 0])
        return [
            ScoredDocument(*result[:-1], score)  # which costs a third of _replace
            for result, score in zip(results, scores, strict=True)
            if score >= least
        ]

    def summary(self) -> RerankSummary:
        """Makes the part of the response that concerns the whole call."""
        future = self.future
        return RerankSummary(
            model=self.model.name,
            model_revision=self.model.card.revision,
            usage=Usage(
                input_tokens=future.tokens,
                cached_pairs=future.shared,
                tokenization_seconds=self.tokenization_seconds,
                queue_seconds=max(0.0, future.started_at - future.admitted_at),
                inference_seconds=max(0.0, future.finished_at - future.started_at),
            ),
            query_truncated=self.tokenized.query_truncated,
        )


class _Unscored:
    """Tells which documents become complete as sequences are scored, and which are `left_out` of scoring."""

    def __init__(self, tokenized: TokenizedRequest) -> None:
        query = set() if tokenized.query is None else {tokenized.query}
        self._needs = [query | {chunk.sequence for chunk in each.chunks} for each in tokenized.documents]
        self.left_out = [index for index, each in enumerate(tokenized.documents) if not each.chunks]
        for index in self.left_out:
            self._needs[index].clear()
        self._documents: dict[int, list[int]] = {}
        for index, needs in enumerate(self._needs):
            for sequence in needs:
                self._documents.setdefault(sequence, []).append(index)

    def complete(self, sequences: list[int]) -> list[int]:
        """Takes scored sequences off, and returns the documents that now lack none."""
        complete = []
        for sequence in sequences:
            for index in self._documents.get(sequence, ()):
                self._needs[index].discard(sequence)
                if not self._needs[index]:
                    complete.append(index)
        return complete


class _Best:
    """Keeps the best `top_n` logits so far; 0 admits all."""

    def __init__(self, top_n: int) -> None:
        self._top_n = top_n
        self._logits: list[float] = []

    def kept(self, results: list[ScoredDocument]) -> list[ScoredDocument]:
        """Returns the results that are, one after the other, among the best so far."""
        return [result for result in results if self._admits(result)] if self._top_n else results

    def _admits(self, result: ScoredDocument) -> bool:
        if len(self._logits) < self._top_n:
            heappush(self._logits, result.logit)
            return True
        return heappushpop(self._logits, result.logit) < result.logit
