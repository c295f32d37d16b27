"""The rim of every handler: errors become statuses, and each call one line in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import grpc

from rerank_grpc.errors import InternalError, RerankError, describe
from rerank_grpc.wire import status

log = logging.getLogger("rerank_grpc.calls")

# Called every few seconds by machines that watch the service; a line each would drown the calls.
PROBES = ("Health",)


@contextmanager
def boundary(context: grpc.ServicerContext, method: str) -> Iterator[dict[str, Any]]:
    """Runs a handler's body; what it puts into the yielded dict goes into the log line.

    A RerankError becomes its status. Any other exception becomes INTERNAL with
    a fixed text, because grpcio would send the exception's own, and that may
    quote the query; for the same reason the log has only its class and place.
    """
    started = monotonic()
    facts: dict[str, Any] = {}
    failure: RerankError | None = None
    try:
        yield facts
    except RerankError as error:
        failure = error
    except GeneratorExit:  # the caller left in the middle of a stream
        facts["left"] = True
    except Exception as error:
        failure = InternalError()
        log.error("%s failed: %s", method, describe(error), extra={"kind": f"{method} failed"})
    code = "OK" if failure is None else status.code_of(failure).name
    if failure is not None:
        facts["reason"] = failure.reason.name
    notes = "".join(f" {name}={value}" for name, value in facts.items())
    level = logging.DEBUG if failure is None and method in PROBES else logging.INFO
    # A kind bounds how often the log says the same: whoever is refused can come again at once.
    kind = None if failure is None else {"kind": f"{method} {code} {failure.reason.name}"}
    log.log(level, "%s %s%s ms=%.1f", method, code, notes, (monotonic() - started) * 1000, extra=kind)
    if failure is not None:
        # Its frames refer to it and to the request, which would stay until a full collection.
        abort(context, failure.with_traceback(None))


def abort(context: grpc.ServicerContext, error: RerankError) -> None:
    """Ends a call with an error's status, details and retry pushback; never returns."""
    context.set_trailing_metadata(status.trailers_of(error, context.time_remaining()))
    context.abort(status.code_of(error), error.message)
