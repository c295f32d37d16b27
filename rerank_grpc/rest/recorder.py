"""The record of each HTTP request: its code and reason by the answer, given to the sinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from rerank_grpc.errors import describe
from rerank_grpc.rest.errors import Problem
from rerank_grpc.telemetry.ids import CallIds
from rerank_grpc.telemetry.records import CallRecord, CallTracer, OpenSpan, Sink, deliver, log
from rerank_grpc.wire.status import CODES

# Names of models whose meaning is remembered, those that were used last.
MOST_NAMES = 64
# A longer one is not remembered: where every name means some model, callers choose them.
LONGEST_NAME = 256
# The code that a status stands for where no error of the service came with it.
CODE_OF_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Recorder:
    """Completes records and gives them to the sinks; used from one loop alone.

    `tracer` begins the spans of calls that are passed on. `configured_name` tells the model that a name
    stands for, "" for an unknown one; without it, names are learned from calls that succeed.
    """

    def __init__(
        self,
        sinks: Sequence[Sink] = (),
        tracer: CallTracer | None = None,
        configured_name: Callable[[str], str] | None = None,
    ) -> None:
        self._sinks = sinks
        self.tracer = tracer
        self._configured_name = configured_name
        # What each name that a caller has asked for, and got, stands for: the configured name.
        self._models: dict[str, str] = {}

    def begin_span(self, ids: CallIds) -> OpenSpan | None:
        """Begins the span of a call that may be passed on; it goes on without one where the tracer fails."""
        try:
            return self.tracer.begin(ids, "rest") if self.tracer else None
        except Exception as error:
            log.error("no span could be begun: %s", describe(error), extra={"kind": "no span"})
            return None

    def end(self, record: CallRecord, status: int, model: str | None, span: OpenSpan | None = None) -> None:
        """Completes a record whose answer is there; `model` is the name asked for, None if not known."""
        record.status, record.seconds = status, monotonic() - record.started
        if status >= 400 and record.code == "OK":
            record.code = code_of(status)
        if model is not None:
            self._name_model(record, model)
        deliver(record, self._sinks if span is None else (span.end, *self._sinks))

    def refuse(self, status: int) -> None:
        """Records the refusal of bytes that never became a request."""
        self.end(CallRecord("other", CallIds(), "rest"), status, None)

    def _name_model(self, record: CallRecord, asked: str) -> None:
        """Tells a failed call's model by what the name means: a caller's text never becomes one."""
        if record.summary is None:
            known = self._configured_name
            record.known_model = known(asked) if known else self._models.get(asked, "")
            return
        if self._configured_name or len(asked) > LONGEST_NAME:
            return
        self._models.pop(asked, None)
        self._models[asked] = record.summary.model
        if len(self._models) > MOST_NAMES:
            del self._models[next(iter(self._models))]


def note(record: CallRecord, problem: Problem) -> None:
    """Writes into a record why its call was refused."""
    error = problem.error
    if error is not None and type(error) in CODES:
        record.code, record.reason = CODES[type(error)].name, error.reason
    else:
        record.code = code_of(problem.status)


def code_of(status: int) -> str:
    """Names the gRPC code that an HTTP status stands for."""
    return CODE_OF_STATUS.get(status, "UNKNOWN")
