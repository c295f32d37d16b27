"""The surroundings of every handler: its Call, its record, and its error as a status."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from uuid import uuid4

import grpc

from rerank_grpc.errors import InternalError, InvalidRequest, Reason, RerankError, describe
from rerank_grpc.limits import LIMITS
from rerank_grpc.server.guard import Edge
from rerank_grpc.telemetry.ids import CallIds
from rerank_grpc.telemetry.records import CallRecord, deliver, log, protocol_of
from rerank_grpc.types import Call
from rerank_grpc.wire import status


@contextmanager
def answering(context: grpc.ServicerContext, method: str, edge: Edge) -> Iterator[CallRecord]:
    """Runs a handler's body, which completes the yielded record; the edge's sinks get it at the end.

    A RerankError becomes its status, any other exception INTERNAL with a fixed
    text: its own may quote the query. The log has only its class and place.
    """
    # Of several values the first counts, as it does for HTTP headers.
    ids = CallIds.read(dict(reversed(context.invocation_metadata() or ())))
    if not ids.request_id:
        ids = ids._replace(request_id=uuid4().hex)
    record = CallRecord(method, ids, protocol_of(method), caller=edge.caller_of(context))
    failure: RerankError | None = None
    try:
        yield record
    except RerankError as error:
        failure = error
    except GeneratorExit:
        record.left, record.code, record.reason = True, "CANCELLED", Reason.CANCELLED
    except Exception as error:
        failure = InternalError()
        log.error("%s failed: %s", method, describe(error), extra={"kind": f"{method} failed"})
    if failure is not None:
        record.code, record.reason = status.CODES[type(failure)].name, failure.reason
    record.seconds = monotonic() - record.started
    deliver(record, edge.sinks)
    if failure is not None:
        # The frames refer to the failure and to the request, which would stay until a full collection.
        abort(context, failure.with_traceback(None))


@contextmanager
def renaming(name_of: Callable[[str], str]) -> Iterator[None]:
    """Has errors of a body name a caller's own fields: `name_of` takes a field of rerank.v1.RerankRequest."""
    try:
        yield
        return
    except InvalidRequest as error:
        found = error
    raise found.renamed(name_of)


def abort(context: grpc.ServicerContext, error: RerankError) -> None:
    """Ends a call with an error's status, details and retry pushback; never returns."""
    context.set_trailing_metadata(status.trailers_of(error, context.time_remaining()))
    context.abort(status.CODES[type(error)], error.message)


def call_of(context: grpc.ServicerContext, record: CallRecord | None = None) -> Call:
    """Makes the Call of a context, cancelled when the RPC ends, which `record` follows.

    Its deadline is within the limit.

    grpcio runs the cancellation after every RPC, on its one serving thread: its callbacks do no I/O and hold
    no lock for long. An RPC without a deadline reports 9.2e18 seconds or None, by version.
    """
    remaining, longest = context.time_remaining(), LIMITS.deadline_seconds
    call = Call(monotonic() + (longest if remaining is None else min(remaining, longest)))
    if record is not None:
        call.timelines, call.caller = record.timelines, record.caller
    if not context.add_callback(call.cancel):
        call.cancel()
    return call
