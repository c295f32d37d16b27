"""Domain errors → google.rpc.Status: the one table, and the details each carries."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2

from rerank_grpc import errors
from rerank_grpc.errors import RerankError

DOMAIN = "rerank.v1"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

# A refusal never invites a caller to return sooner.
SHORTEST_DELAY_SECONDS = 0.1
# An attempt that begins with less time than this before its deadline is not worth beginning.
SHORTEST_ATTEMPT_SECONDS = 0.1

CODES: dict[type[RerankError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedOption: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnknownModel: grpc.StatusCode.NOT_FOUND,
    errors.ModelLoading: grpc.StatusCode.UNAVAILABLE,
    errors.ModelFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineUnreachable: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.PairTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}


def code_of(error: RerankError) -> grpc.StatusCode:
    """Returns the gRPC code of an error."""
    return CODES[type(error)]


def abort(context: grpc.ServicerContext, error: RerankError) -> None:
    """Ends a call with an error's status, details and retry pushback; never returns.

    gRPC's own retries read only the pushback trailer, see `_pushback_ms`.
    """
    context.set_trailing_metadata(
        (
            (DETAILS_KEY, status_of(error).SerializeToString()),
            (PUSHBACK_KEY, str(_pushback_ms(error, context.time_remaining()))),
        )
    )
    context.abort(code_of(error), error.message)


def _pushback_ms(error: RerankError, remaining: float | None) -> int:
    """Tells gRPC's own retries how long to wait; -1 stops them, and the caller gets the error at once.

    The deadline stops them too: gRPC would sleep past it, and report
    DEADLINE_EXCEEDED in place of the error. `remaining` is in seconds; a call
    without a deadline has None or 9.2e18, by grpcio's version.
    """
    delay_ms = _delay_ms(error)
    if delay_ms is None:
        return -1
    needed = delay_ms / 1000 + SHORTEST_ATTEMPT_SECONDS
    return delay_ms if remaining is None or needed < remaining else -1


def _delay_ms(error: RerankError) -> int | None:
    """Tells when the call may be tried again; None where a retry does not help."""
    if error.retry_after is None:
        return None
    return round(max(error.retry_after, SHORTEST_DELAY_SECONDS) * 1000)


def status_of(error: RerankError) -> status_pb2.Status:
    """Makes the google.rpc.Status of an error, with exactly one ErrorInfo."""
    status = status_pb2.Status(code=code_of(error).value[0], message=error.message)
    for detail in _details(error):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _details(error: RerankError) -> Iterator[message.Message]:
    yield details.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=error.metadata)
    delay_ms = _delay_ms(error)
    if delay_ms is not None:
        retry = duration_pb2.Duration()
        retry.FromMilliseconds(delay_ms)
        yield details.RetryInfo(retry_delay=retry)
    model = error.metadata.get("model", "")
    match error:
        case errors.InvalidRequest():
            yield details.BadRequest(
                field_violations=[
                    details.BadRequest.FieldViolation(
                        field=violation.field, description=violation.description, reason=error.reason.value
                    )
                    for violation in error.violations
                ]
            )
        case errors.UnknownModel():
            yield details.ResourceInfo(resource_type="model", resource_name=model, description=error.message)
        case errors.ModelFailed():
            violation = details.PreconditionFailure.Violation(
                type="MODEL_STATE", subject=model, description=error.message
            )
            yield details.PreconditionFailure(violations=[violation])
        case errors.RateLimited():
            quota = details.QuotaFailure.Violation(subject="token", description=error.message)
            yield details.QuotaFailure(violations=[quota])
