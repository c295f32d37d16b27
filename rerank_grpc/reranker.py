"""The application: check, lease a model, tokenize, score, order, cut to top_n."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappush, heappushpop
from operator import attrgetter
from time import monotonic

from rerank_grpc.checks import check_request
from rerank_grpc.config import Limits
from rerank_grpc.engine.future import Future
from rerank_grpc.gate import Gate, Permit
from rerank_grpc.registry import Lease, LoadedModel, Registry
from rerank_grpc.scores import best_chunk, logits_of, relevance_scores
from rerank_grpc.sequence import TokenizedRequest
from rerank_grpc.tokenizer.pace import Pace, Turns
from rerank_grpc.types import Call, RerankRequest, RerankResponse, RerankSummary, ScoredDocument, Usage


class Reranker:
    """Answers requests with the models of a registry; called by many threads at once.

    `door` bounds the calls inside, `lobby` those that wait for a model to be loaded.
    """

    def __init__(self, registry: Registry, limits: Limits, door: Gate, lobby: Gate) -> None:
        self._registry = registry
        self._limits = limits
        self._door = door
        self._lobby = lobby
        self._turns = Turns()

    def rerank(self, request: RerankRequest, call: Call | None = None) -> RerankResponse:
        """Scores all documents and returns them by descending relevance; raises a RerankError."""
        with self._admitted(request, call or Call()) as job:
            job.scoring.wait()
            results = job.results(range(len(request.documents)))
            results.sort(key=attrgetter("logit"), reverse=True)  # stable: ties keep the caller's order
            if request.top_n:
                del results[request.top_n :]
            return RerankResponse(tuple(results), job.summary())

    def stream(
        self, request: RerankRequest, call: Call | None = None
    ) -> Iterator[list[ScoredDocument] | RerankSummary]:
        """Yields results as they are scored, and the summary at last; otherwise like `rerank`.

        With top_n, a result comes only if it is among the best so far.
        """
        with self._admitted(request, call or Call(), stepwise=True) as job:
            best = _Best(request.top_n)
            missing = job.sequences_missing()
            for sequences in job.scoring.completed():
                results = job.results(missing.complete(sequences))
                results = [result for result in results if best.admits(result)]
                if results:
                    yield results
            yield job.summary()

    def _enter(self, request: RerankRequest, call: Call) -> tuple[Lease, Permit]:
        """Leases the model and takes a slot.

        A call that waits for its model to be loaded takes a place in the lobby
        meanwhile, and a slot after that: it must not keep calls of other models out.
        """
        characters = check_request(request, self._limits)
        lease = self._registry.lease_now(request.model)
        if lease is None:
            with self._lobby.enter(characters):
                lease = self._registry.lease(request.model, deadline=call.deadline, on_cancel=call.on_cancel)
        try:
            return lease, self._door.enter(characters)
        except BaseException:
            lease.leave()
            raise

    @contextmanager
    def _admitted(self, request: RerankRequest, call: Call, *, stepwise: bool = False) -> Iterator[_Job]:
        """Takes a request to the device's queue, and out of it when a `with` statement ends.

        The request's slot is given back as soon as its scores are there, because
        a stream's caller may read them late or never.
        """
        lease, slot = self._enter(request, call)
        with slot, lease as model, model.engine.admit(call, request.priority) as admission:
            started = monotonic()
            encoded = model.encoder.encode(
                request.query,
                [document.text for document in request.documents],
                instruction=request.instruction,
                max_tokens_per_document=request.max_tokens_per_document,
                truncation=request.truncation,
                max_chunks=max(1, request.max_chunks_per_document),
                pace=Pace(self._turns, call.check),
            )
            tokenized = monotonic()
            scoring = admission.submit(encoded.sequences, stepwise=stepwise)
            scoring.on_done(slot.leave)
            yield _Job(request, model, encoded, scoring, tokenized - started)


@dataclass(frozen=True, slots=True)
class _Job:
    """One admitted request on its way to a response."""

    request: RerankRequest
    model: LoadedModel
    encoded: TokenizedRequest
    scoring: Future
    tokenization_seconds: float

    def results(self, indices: Iterable[int]) -> list[ScoredDocument]:
        """Makes the results of documents whose sequences are all scored, but for those below the bound."""
        places, encoded = list(indices), self.encoded.documents
        logit_of = logits_of(self.scoring.outputs, self.encoded.query)
        chosen = [best_chunk(encoded[index], logit_of) for index in places]
        scores = relevance_scores([logit for _, logit in chosen], self.model.card.scoring)
        (bound,) = array("f", [self.request.min_relevance_score or 0])  # as the caller saw scores: in float32
        return [
            self._result(index, best, logit, score)
            for index, (best, logit), score in zip(places, chosen, scores, strict=True)
            if score >= bound
        ]

    def _result(self, index: int, best: int, logit: float, score: float) -> ScoredDocument:
        source = self.request.documents[index]
        chunks, truncated = self.encoded.documents[index]
        _, tokens, span = chunks[best]
        document = source if self.request.return_documents else None
        return ScoredDocument(index, score, logit, source.id, document, tokens, truncated, span)

    def summary(self) -> RerankSummary:
        """Says what is said once about the whole call."""
        scoring = self.scoring
        return RerankSummary(
            model=self.model.name,
            model_revision=self.model.card.revision,
            usage=Usage(
                input_tokens=scoring.tokens,
                cached_pairs=scoring.shared,
                tokenization_seconds=self.tokenization_seconds,
                queue_seconds=max(0.0, scoring.started_at - scoring.admitted_at),
                inference_seconds=max(0.0, scoring.finished_at - scoring.started_at),
            ),
            query_truncated=self.encoded.query_truncated,
        )

    def sequences_missing(self) -> _Missing:
        """Starts to keep count of which documents are complete."""
        return _Missing(self.encoded)


class _Missing:
    """Tells which documents become complete as sequences are scored."""

    def __init__(self, encoded: TokenizedRequest) -> None:
        query = set() if encoded.query is None else {encoded.query}
        self._needs = [
            query | {chunk.sequence for chunk in document.chunks} for document in encoded.documents
        ]
        self._documents: dict[int, list[int]] = {}
        for index, needs in enumerate(self._needs):
            for sequence in needs:
                self._documents.setdefault(sequence, []).append(index)

    def complete(self, sequences: list[int]) -> list[int]:
        """Takes scored sequences off, and returns the documents that now lack none."""
        ready = []
        for sequence in sequences:
            for index in self._documents.get(sequence, ()):
                self._needs[index].discard(sequence)
                if not self._needs[index]:
                    ready.append(index)
        return ready


class _Best:
    """Keeps the best `top_n` logits so far; 0 admits all."""

    def __init__(self, top_n: int) -> None:
        self._top_n = top_n
        self._logits: list[float] = []

    def admits(self, result: ScoredDocument) -> bool:
        """Whether a result is among the best so far, itself counted in."""
        if not self._top_n:
            return True
        if len(self._logits) < self._top_n:
            heappush(self._logits, result.logit)
            return True
        return heappushpop(self._logits, result.logit) < result.logit
