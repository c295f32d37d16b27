"""The rim of every handler: its Call, its record, and its error as a status."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TypeAlias

import grpc

from rerank_grpc.errors import InternalError, Reason, RerankError, describe
from rerank_grpc.limits import LIMITS
from rerank_grpc.types import Call, RerankSummary
from rerank_grpc.wire import status
from rerank_grpc.wire.status import CallIds

log = logging.getLogger("rerank_grpc.calls")


@dataclass(slots=True)
class CallRecord:
    """One call, complete when its handler ends; `left` where its caller left in the middle of a stream."""

    method: str
    ids: CallIds
    documents: int | None = None
    summary: RerankSummary | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: Reason | None = None
    left: bool = False
    seconds: float = 0.0


# Takes each call's record on the thread that answers it; must neither block nor raise.
Sink: TypeAlias = Callable[[CallRecord], None]


@contextmanager
def answering(context: grpc.ServicerContext, method: str, sinks: Sequence[Sink]) -> Iterator[CallRecord]:
    """Runs a handler's body, which completes the yielded record; the sinks get it at the end.

    A RerankError becomes its status, any other exception INTERNAL with a fixed
    text: its own may quote the query. The log has only its class and place.
    """
    started = monotonic()
    # Of several values the first counts, as it does for HTTP headers.
    record = CallRecord(method, CallIds.read(dict(reversed(context.invocation_metadata() or ()))))
    failure: RerankError | None = None
    try:
        yield record
    except RerankError as error:
        failure = error
    except GeneratorExit:
        record.left = True
    except Exception as error:
        failure = InternalError()
        log.error("%s failed: %s", method, describe(error), extra={"kind": f"{method} failed"})
    if failure is not None:
        record.code, record.reason = status.CODES[type(failure)], failure.reason
    record.seconds = monotonic() - started
    for sink in sinks:
        sink(record)
    if failure is not None:
        # The frames refer to the failure and to the request, which would stay until a full collection.
        abort(context, failure.with_traceback(None))


def abort(context: grpc.ServicerContext, error: RerankError) -> None:
    """Ends a call with an error's status, details and retry pushback; never returns."""
    context.set_trailing_metadata(status.trailers_of(error, context.time_remaining()))
    context.abort(status.CODES[type(error)], error.message)


def log_call(record: CallRecord) -> None:
    """Writes a call's line to the log; a server's default sink."""
    code, reason = record.code.name, record.reason and record.reason.name
    # Machines that watch the service call Health every few seconds; a line each would drown the calls.
    level = logging.DEBUG if reason is None and record.method == "Health" else logging.INFO
    # The kind bounds repetitions: a refused caller can return at once.
    kind = None if reason is None else {"kind": f"{record.method} {code} {reason}"}
    summary = record.summary
    facts = {
        "documents": record.documents,
        "model": summary and summary.model,
        "tokens": summary and summary.usage.input_tokens,
        "left": record.left or None,
        "reason": reason,
        "request_id": record.ids.request_id or None,
        "trace_id": record.ids.trace_id or None,
    }
    notes = "".join([f" {name}={value}" for name, value in facts.items() if value is not None])
    log.log(level, "%s %s%s ms=%.1f", record.method, code, notes, record.seconds * 1000, extra=kind)


def call_of(context: grpc.ServicerContext) -> Call:
    """Makes the Call of a context, cancelled when the RPC ends; its deadline is within the limit.

    grpcio runs the cancellation after every RPC, on its one serving thread: its
    callbacks do no I/O and hold no lock for long. An RPC without a deadline
    reports 9.2e18 seconds or None, by version.
    """
    remaining, longest = context.time_remaining(), LIMITS.deadline_seconds
    call = Call(monotonic() + (longest if remaining is None else min(remaining, longest)))
    if not context.add_callback(call.cancel):
        call.cancel()
    return call
