"""Traces of calls and batches by OpenTelemetry's SDK, which its own variables configure."""

from __future__ import annotations

import enum
import logging
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from time import monotonic, monotonic_ns, time_ns

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rerank_grpc import __version__
from rerank_grpc.errors import ConfigurationError, describe, one_line, shortened
from rerank_grpc.telemetry import spans
from rerank_grpc.telemetry.ids import CallIds
from rerank_grpc.telemetry.records import BatchRecord, CallRecord, OpenSpan

log = logging.getLogger(__name__)

# Above all loggers of the SDK.
SDK_LOGGER = "opentelemetry"
# Where it writes its own lines: on each failed attempt, and on each span that does not fit the queue.
EXPORTER_LOGGER = "opentelemetry.exporter.otlp.proto.grpc.exporter"
QUEUE_LOGGER = "opentelemetry.sdk._shared_internal"
# A collector that takes spans now and then is told about once in this time.
QUIET_SECONDS = 60.0
UNTOLD = "it failed"
MOST_CAUSE_BYTES = 200
# A tenant's number in a header is no secret, and may stand anywhere in a text.
SHORTEST_SECRET = 4

# The time in which a process that ends sends the spans that are left.
FLUSH_SECONDS = 1.0
# The requests of a call that have spans of their own, and the batches that a span refers to: a stream of
# texts may have a thousand of each.
MOST_REQUESTS, MOST_LINKS = 32, 128
# The clocks differ by this much more once somebody has set one of them, or the machine has slept.
STEP_NANOSECONDS = 1_000_000_000

_FILES = "OTEL_EXPORTER_OTLP_CERTIFICATE, …_CLIENT_KEY or …_CLIENT_CERTIFICATE"
# Parts of what the SDK says of a variable that it does not name.
_VARIABLES = {
    "TRACES_SAMPLER_ARG": "OTEL_TRACES_SAMPLER_ARG",
    "sampler": "OTEL_TRACES_SAMPLER",
    "max_export_batch_size": "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "max_queue_size": "OTEL_BSP_MAX_QUEUE_SIZE",
    "schedule_delay_millis": "OTEL_BSP_SCHEDULE_DELAY",
    "string to float": "OTEL_EXPORTER_OTLP_TIMEOUT",
    "resource attribute": "OTEL_RESOURCE_ATTRIBUTES",
    "Header format": "OTEL_EXPORTER_OTLP_HEADERS",
    "Failed to read file": _FILES,
    "Errno": _FILES,
}

_W3C = TraceContextTextMapPropagator()

# The SDK quotes a tracestate of another form in the log.
_STATE_KEY = r"(?:[a-z][-_0-9a-z*/]{0,255}|[a-z0-9][-_0-9a-z*/]{0,240}@[a-z][-_0-9a-z*/]{0,13})"
_STATE_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_STATE_MEMBER = re.compile(f"{_STATE_KEY}={_STATE_VALUE}")
_MOST_STATE_MEMBERS = 32


def make_traces(endpoint: str) -> Traces:
    """Makes the traces of this process, which go to `endpoint`, without any state outside of them.

    Raises ConfigurationError where the SDK refuses the value of one of its variables, or would go on with
    another value.
    """
    with _strict():
        exporter = OTLPSpanExporter(endpoint)
        # It would shut down once more at the interpreter's exit, and wait for half a minute.
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        collector = Collector(exporter, endpoint.rpartition("@")[2], _secrets(exporter))
        try:
            provider.add_span_processor(BatchSpanProcessor(collector))
        except BaseException:
            collector.shutdown()
            raise
    return Traces(provider, collector)


def _secrets(exporter: OTLPSpanExporter) -> list[str]:
    """Lists the values of the exporter's headers, and the key of "Bearer KEY" alone; no short ones."""
    headers = exporter._headers if isinstance(exporter._headers, tuple) else ()
    parts = [part for _, value in headers for part in (value, *value.split())]
    return [part for part in parts if len(part) >= SHORTEST_SECRET]


@contextmanager
def _strict() -> Iterator[None]:
    """Raises ConfigurationError for an error or a warning of the SDK in this block and thread.

    Neither the error nor the log repeats the SDK's text: it quotes values, of which headers hold keys.
    """
    complaints, sdk = Complaints(logging.WARNING), logging.getLogger(SDK_LOGGER)
    level, propagates = sdk.level, sdk.propagate
    sdk.addHandler(complaints)
    sdk.setLevel(logging.WARNING)  # whatever the log is to show
    sdk.propagate = False
    try:
        yield
    except Exception as error:
        variable = _blamed(str(error)) or f"a variable that begins with OTEL_ ({describe(error)})"
        raise ConfigurationError(f"tracing: OpenTelemetry refuses the value of {variable}") from None
    finally:
        sdk.propagate = propagates
        sdk.setLevel(level)
        sdk.removeHandler(complaints)


class Complaints(logging.Handler):
    """Makes errors of the lines of the thread that has made it; those of others go on to the log."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            raise ValueError(record.getMessage())
        logging.getLogger().handle(record)


def _blamed(complaint: str) -> str:
    """Names the variable that the SDK complains of, "" where that is not known."""
    for part, variable in _VARIABLES.items():
        if part in complaint:
            return variable
    named = re.search(r"\bOTEL_[A-Z_]+", complaint)
    return named[0] if named else ""


def _resource() -> Resource:
    """Names this service, unless OpenTelemetry's variables do."""
    own = Resource.create({"service.name": "rerank-grpc", "service.version": __version__})
    return own.merge(OTELResourceDetector().detect())


class Traces:
    """Makes the spans of calls and batches; a CallTracer. Any thread may use it, and none waits.

    A call that REST passes on is open from `begin` on; one of the gRPC server gets its spans in `call`, from
    its record, once it has ended.
    """

    def __init__(self, provider: TracerProvider, collector: Collector) -> None:
        self._provider = provider
        self._collector = collector
        self._tracer = provider.get_tracer("rerank_grpc", __version__, spans.SCHEMA_URL)
        self._clock = WallClock()
        self._closed = False

    def begin(self, ids: CallIds, protocol: str) -> OpenSpan:
        """Begins the span of a call to be passed on, below that of its caller."""
        return LiveSpan(self._tracer, self._clock, ids, protocol)

    def call(self, record: CallRecord) -> None:
        """Makes the spans of a call of the gRPC server; a sink, and the first of them.

        Where the caller has named no trace, the record gets the name of the one that begins here: the sinks
        that follow tell it.
        """
        if self._closed or record.protocol == "rest" or not spans.is_traced(record):
            return
        span = self._tracer.start_span(
            spans.name_of(record),
            _context_of(record.ids),
            SpanKind.SERVER,
            spans.attributes_of(record),
            links=_links(_batches_of(record)),
            start_time=self._clock.nanoseconds(record.started),
        )
        if not span.is_recording():
            return
        if not record.ids.traceparent:
            record.ids = record.ids._replace(traceparent=_headers_of(span)["traceparent"])
        self._make_stages(span, record)
        _end(span, record, self._clock)

    def batch(self, record: BatchRecord) -> SpanContext | None:
        """Makes the span of a batch, a trace of its own; a batch sink.

        Returns the span's context, None where it is not sampled.
        """
        if self._closed:
            return None
        span = self._tracer.start_span(
            "batch",
            Context(),
            attributes=spans.attributes_of_batch(record),
            start_time=self._clock.nanoseconds(record.started),
        )
        span.end(self._clock.nanoseconds(record.ended))
        context = span.get_span_context()
        return context if context.trace_flags.sampled else None

    def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Sends the spans that are left, for so long at most; no further ones are made."""
        if self._closed:
            return
        self._closed = True
        limit = threading.Timer(seconds, self._collector.abandon)
        limit.daemon = True
        limit.start()
        try:
            self._provider.shutdown()
        finally:
            limit.cancel()

    def _make_stages(self, parent: Span, record: CallRecord) -> None:
        context = set_span_in_context(parent, Context())
        for stage, batches in spans.stages_of(record, MOST_REQUESTS):
            span = self._tracer.start_span(
                stage.name,
                context,
                SpanKind.INTERNAL,
                stage.attributes,
                links=_links(batches),
                start_time=self._clock.nanoseconds(stage.start),
            )
            if stage.broken:
                span.set_status(StatusCode.ERROR)
            span.end(self._clock.nanoseconds(stage.end))


class LiveSpan:
    """The span of a call that is passed on, while it is being answered; an OpenSpan."""

    def __init__(self, tracer: Tracer, clock: WallClock, ids: CallIds, protocol: str) -> None:
        self._clock = clock
        self._span = tracer.start_span(
            protocol, _context_of(ids), SpanKind.SERVER, start_time=clock.nanoseconds(monotonic())
        )
        self.headers = _headers_of(self._span)

    def end(self, record: CallRecord) -> None:
        """Ends it with what became of the call; the span of a probe is thrown away."""
        if self._span.is_recording() and spans.is_traced(record):
            self._span.update_name(spans.name_of(record))
            self._span.set_attributes(spans.attributes_of(record))
            _end(self._span, record, self._clock)


class Collector(SpanExporter):
    """Hands batches of spans to an exporter, on the SDK's thread alone.

    The exporter tries again by itself. Of the lines that the SDK writes while the collector is away, the
    first one is told in one of our own, with the collector's `name` and without any of the `secrets`, and the
    end of it in another.
    """

    def __init__(self, exporter: SpanExporter, name: str, secrets: Iterable[str] = ()) -> None:
        self._exporter = exporter
        self._name = name
        self._secrets = tuple(secrets)
        self._thread: int | None = None  # the one that hands over at the moment
        self._away = self._abandoned = False
        self._told = -QUIET_SECONDS
        for logger in (EXPORTER_LOGGER, QUEUE_LOGGER):
            # Before the filter of the SDK, which lets only the first of lines that are alike through.
            logging.getLogger(logger).filters.insert(0, self._admits)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends spans; those of a batch that fails for longer than the exporter's timeout are lost."""
        self._thread = threading.get_ident()
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._fail(describe(error))
            return SpanExportResult.FAILURE
        finally:
            self._thread = None
        if result is SpanExportResult.SUCCESS:
            self._succeed()
        else:
            self._fail(UNTOLD)
        return result

    def abandon(self) -> None:
        """Gives up what is under way, from any thread; what comes later fails at once."""
        if not self._abandoned:
            self._abandoned = True
            self._exporter.shutdown()

    def shutdown(self) -> None:
        """Ends it, once no thread exports any more."""
        self.abandon()
        for logger in (EXPORTER_LOGGER, QUEUE_LOGGER):
            logging.getLogger(logger).removeFilter(self._admits)

    def _admits(self, record: logging.LogRecord) -> bool:
        """Takes the SDK's lines about this collector out of the log; the first of them becomes ours."""
        own = record.thread == self._thread if record.name == EXPORTER_LOGGER else record.name == QUEUE_LOGGER
        if not own or record.levelno < logging.WARNING:
            return True
        self._fail(self._cause_of(record))
        return False

    def _cause_of(self, record: logging.LogRecord) -> str:
        """Finds the code and the details that a line of the SDK tells; a collector may quote headers."""
        if record.name == QUEUE_LOGGER:
            return "it takes them too slowly"
        values = record.args if isinstance(record.args, tuple) else ()
        code = next((value.name for value in values if isinstance(value, enum.Enum)), None)
        if code is None:
            return UNTOLD
        details = str(values[-1] or "")
        for secret in self._secrets:
            details = details.replace(secret, "…")
        return f"{code}: {shortened(one_line(details), MOST_CAUSE_BYTES)}" if details else code

    def _fail(self, cause: str) -> None:
        if not self._away and monotonic() - self._told > QUIET_SECONDS:
            self._away, self._told = True, monotonic()
            log.warning(
                "no traces reach the collector at %s (%s): it is tried again in the background, and the "
                "oldest spans are dropped meanwhile",
                self._name,
                cause,
            )

    def _succeed(self) -> None:
        if self._away:
            self._away = False
            log.info("traces reach the collector at %s again", self._name)


class WallClock:
    """Tells the time of day of moments of time.monotonic.

    One difference between the two clocks holds for all spans, so that they lie inside each other, until
    somebody sets the clock.
    """

    def __init__(self) -> None:
        self._difference = _difference()

    def nanoseconds(self, moment: float) -> int:
        """Returns the nanoseconds since 1970."""
        if abs(time_ns() - monotonic_ns() - self._difference) > STEP_NANOSECONDS:
            self._difference = _difference()
        return round(moment * 1e9) + self._difference


def _difference() -> int:
    """Measures how far the time of day is ahead of time.monotonic, at a moment without interruption."""

    def look() -> tuple[int, int]:
        before, wall, after = monotonic_ns(), time_ns(), monotonic_ns()
        return after - before, wall - (before + after) // 2

    _, difference = min(look() for _ in range(5))
    return difference


def _context_of(ids: CallIds) -> Context:
    """Makes the context of a caller's span: an empty one, never the thread's, where there is none."""
    headers = {"traceparent": ids.traceparent}
    if is_state(ids.tracestate):
        headers["tracestate"] = ids.tracestate
    return _W3C.extract(headers, Context())


def is_state(text: str) -> bool:
    """Tells whether a text is a tracestate by the letter of W3C's recommendation."""
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    return 0 < len(members) <= _MOST_STATE_MEMBERS and all(map(_STATE_MEMBER.fullmatch, members))


def _headers_of(span: Span) -> dict[str, str]:
    """Writes a span's context as headers."""
    headers: dict[str, str] = {}
    _W3C.inject(headers, set_span_in_context(span, Context()))
    return headers


def _batches_of(record: CallRecord) -> list[object]:
    """Lists what the batch sink returned for the batches of a call, of all its requests."""
    return [batch for timeline in record.timelines for batch in timeline.batches]


def _links(batches: Iterable[object]) -> list[Link]:
    contexts = (batch for batch in batches if isinstance(batch, SpanContext))
    return [Link(context) for context in islice(contexts, MOST_LINKS)]


def _end(span: Span, record: CallRecord, clock: WallClock) -> None:
    if spans.is_fault(record):
        span.set_status(StatusCode.ERROR)
    span.end(clock.nanoseconds(record.started + record.seconds))
