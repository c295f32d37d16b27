"""Errors ↔ google.rpc.Status, in the trailers of a call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import grpc
from google.protobuf import message
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2

from rerank_grpc import errors
from rerank_grpc.errors import FieldViolation, Reason, RerankError
from rerank_grpc.wire.messages import duration_from, duration_to

Trailers = Iterable[tuple[str, str | bytes]]

DOMAIN = "rerank.v1"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

# A refusal never invites a caller to return sooner.
SHORTEST_DELAY_SECONDS = 0.1
# An attempt that begins with less time than this before its deadline is not worth beginning.
SHORTEST_ATTEMPT_SECONDS = 0.1

CODES: Mapping[type[RerankError], grpc.StatusCode] = {
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

_REASONS: Mapping[str, Reason] = {reason.value: reason for reason in Reason}


@dataclass(frozen=True, slots=True)
class Failure:
    """The status of a failed call.

    `reason` is None without an ErrorInfo of this service (`described`), or if newer than this package.
    """

    code: grpc.StatusCode
    text: str
    described: bool = False
    reason: Reason | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    violations: tuple[FieldViolation, ...] = ()


def trailers_of(error: RerankError, remaining: float | None) -> tuple[tuple[str, str | bytes], ...]:
    """Makes the trailers of an error: its details, and the pushback that gRPC's own retries read.

    `remaining` is the seconds left to the call's deadline; a call without one has None or 9.2e18, by grpcio's
    version. A pushback of -1 stops gRPC's retries. A deadline without time for another attempt stops them
    too: gRPC would sleep past it, and report DEADLINE_EXCEEDED in place of the error.
    """
    pushback = -1
    if (delay_ms := _delay_ms(error)) is not None:
        needed = delay_ms / 1000 + SHORTEST_ATTEMPT_SECONDS
        pushback = delay_ms if remaining is None or needed < remaining else -1
    return (DETAILS_KEY, status_of(error).SerializeToString()), (PUSHBACK_KEY, str(pushback))


def _delay_ms(error: RerankError) -> int | None:
    if error.retry_after is None:
        return None
    return round(max(error.retry_after, SHORTEST_DELAY_SECONDS) * 1000)


def status_of(error: RerankError) -> status_pb2.Status:
    """Makes the google.rpc.Status of an error, with exactly one ErrorInfo."""
    status = status_pb2.Status(code=CODES[type(error)].value[0], message=error.message)
    for detail in _details_of(error):
        status.details.add().Pack(detail)
    return status


def _details_of(error: RerankError) -> Iterator[message.Message]:
    yield details.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=error.metadata)
    if (delay_ms := _delay_ms(error)) is not None:
        yield details.RetryInfo(retry_delay=duration_to(delay_ms / 1000))
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
            caller = error.metadata.get("caller", "")
            quota = details.QuotaFailure.Violation(subject=caller, description=error.message)
            yield details.QuotaFailure(violations=[quota])


def read_failure(code: grpc.StatusCode, text: str | None, trailers: Trailers | None) -> Failure:
    """Reads a failed call's status; details that cannot be parsed count as absent."""
    found = (value for key, value in trailers or () if key == DETAILS_KEY and isinstance(value, bytes))
    try:
        return _failure_from(code, text or "", status_pb2.Status.FromString(next(found, b"")))
    except message.DecodeError:
        return Failure(code, text or "")


def _failure_from(code: grpc.StatusCode, text: str, status: status_pb2.Status) -> Failure:
    """Reads the service's ErrorInfo, the RetryInfo and the BadRequest; without the first, none counts."""
    info, retry, bad_request = details.ErrorInfo(), details.RetryInfo(), details.BadRequest()
    described = retried = False
    for detail in status.details:
        if not described and detail.Unpack(info):
            described = info.domain == DOMAIN
        retried = detail.Unpack(retry) or retried
        detail.Unpack(bad_request)
    if not described:
        return Failure(code, text)
    return Failure(
        code,
        text,
        described=True,
        reason=_REASONS.get(info.reason),
        metadata=dict(info.metadata),
        retry_after=duration_from(retry.retry_delay) if retried else None,
        violations=tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations),
    )
