"""Counts calls and batches for Prometheus, by their records."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector

from rerank_grpc.callers import ANYONE
from rerank_grpc.errors import Reason
from rerank_grpc.telemetry import families
from rerank_grpc.telemetry.families import OTHER, REASONS, REFUSED, VALUES, Children
from rerank_grpc.telemetry.records import PROTOCOLS, STAGES, BatchRecord, CallRecord
from rerank_grpc.telemetry.registry import MetricsRegistry
from rerank_grpc.types import Timeline

MOST_LEARNED = 64  # names of models that other servers have
MOST_CALLERS = 100  # names of callers: an authority may certify any number


class Metrics:
    """The metrics of calls and batches in one registry, beside those of the process.

    `models` are the configured names; any other counts as OTHER. Without them, where other servers have the
    models, the first MOST_LEARNED names that these answer with count as well, and of callers the first
    MOST_CALLERS that call. Any thread may tell of a `call` or a `batch`: its record is counted before the
    next scrape.
    """

    def __init__(self, registry: MetricsRegistry, models: Sequence[str] | None = None) -> None:
        self.call = registry.later(self._count_call)
        self.batch = registry.later(self._count_batch)
        self._models = set(models or ())
        self._learns = models is None
        self._callers = {ANYONE.name}
        self._calls = Children(families.CALLS.counter(registry))
        self._call_seconds = Children(families.CALL_SECONDS.histogram(registry))
        self._stage_seconds = Children(families.STAGE_SECONDS.histogram(registry))
        self._documents = Children(families.DOCUMENTS.counter(registry))
        self._pairs = Children(families.PAIRS.counter(registry))
        self._tokens = Children(families.REQUEST_TOKENS.counter(registry))
        self._truncated = Children(families.TRUNCATED.counter(registry))
        self._shared = Children(families.SHARED.counter(registry))
        self._batch_tokens = Children(families.BATCH_TOKENS.histogram(registry))
        self._batch_fill = Children(families.BATCH_FILL.histogram(registry))
        self._batch_seconds = Children(families.BATCH_SECONDS.histogram(registry))
        self._refusals = Children(families.REFUSALS.counter(registry))
        self._failures = Children(families.AUTHENTICATION_FAILURES.counter(registry))
        self._begin(models or ())
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def _begin(self, models: Sequence[str]) -> None:
        """Makes the series that are known before the first call: their first event is then a rise, from 0."""
        for model in models:
            of_model = (model,)
            for counters in (self._pairs, self._truncated, self._shared):
                counters[of_model]
            for counters in (self._documents, self._tokens):
                counters[model, ANYONE.name]
            for histograms in (self._batch_tokens, self._batch_fill, self._batch_seconds):
                histograms[of_model]
            for stage in STAGES:
                self._stage_seconds[stage, model]
        for reason in REFUSED:
            self._refusals[REASONS[reason], ANYONE.name]
        for protocol in PROTOCOLS:
            self._failures[protocol,]

    def _count_call(self, record: CallRecord) -> None:
        """Counts a call; one that this process's REST server tells of as well, by its requests alone."""
        caller = record.caller.name
        if caller not in self._callers:
            caller = self._learned(caller)
        if not record.ids.told_by_rest:
            self._count_outcome(record, caller)
        timelines = record.timelines
        for timeline in timelines:
            self._count_request(timeline, caller)
        if timelines and (finished := timelines[-1].finished):
            answered = record.started + record.seconds
            self._stage_seconds["answer", self._model(timelines[-1].model)].observe(
                max(0.0, answered - finished)
            )

    def _count_batch(self, record: BatchRecord) -> None:
        """Counts a batch."""
        model = (self._model(record.model),)
        self._batch_tokens[model].observe(record.tokens)
        self._batch_fill[model].observe(record.tokens / record.budget)
        self._batch_seconds[model].observe(record.ended - record.started)

    def _count_outcome(self, record: CallRecord, caller: str) -> None:
        if self._learns and record.summary is not None and len(self._models) < MOST_LEARNED:
            self._models.add(record.summary.model)
        method, code = _bounded("method", record.method), _bounded("code", record.code)
        model, reason = self._model(record.model), record.reason
        text = "" if reason is None else REASONS[reason]
        protocol = record.protocol
        self._calls[method, protocol, _bounded("dialect", record.dialect), model, code, text, caller].inc()
        self._call_seconds[method, protocol, model].observe(record.seconds)
        if reason in REFUSED:
            self._refusals[text, caller].inc()
        if reason is Reason.UNAUTHENTICATED:
            self._failures[protocol,].inc()

    def _count_request(self, timeline: Timeline, caller: str) -> None:
        """Counts what a request brought, and the stages that it has left behind."""
        model = self._model(timeline.model)
        for stage, seconds in timeline.stages():
            self._stage_seconds[stage, model].observe(seconds)
        if timeline.documents:
            of_model = (model,)
            self._documents[model, caller].inc(timeline.documents)
            self._pairs[of_model].inc(timeline.pairs)
            self._tokens[model, caller].inc(timeline.tokens)
            if timeline.truncated:
                self._truncated[of_model].inc(timeline.truncated)
            if timeline.shared:
                self._shared[of_model].inc(timeline.shared)

    def _model(self, name: str) -> str:
        return name if name in self._models else OTHER

    def _learned(self, caller: str) -> str:
        if len(self._callers) > MOST_CALLERS:
            return OTHER
        self._callers.add(caller)
        return caller


def _bounded(label: str, value: str) -> str:
    return value if value in VALUES[label] else OTHER
