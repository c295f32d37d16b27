"""From a failed call to an exception, and whether to try again; no I/O.

Only gRPC's status is looked at: its code, its text and the google.rpc.Status
in the ``grpc-status-details-bin`` trailer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import grpc
from google.protobuf import message
from google.rpc import error_details_pb2, status_pb2

from rerank_grpc import errors
from rerank_grpc.client.exceptions import MessageTooLarge, ServerUnavailable, UnexpectedStatus
from rerank_grpc.errors import FieldViolation, Reason, RerankError

Trailers = Iterable[tuple[str, str | bytes]]

DOMAIN = "rerank.v1"

# By how much a wait may grow, so that callers refused together do not return together.
JITTER = 0.2

# gRPC's own text says no more than that the stream was reset.
_ENDED_THERE = (
    "the server or a proxy ended the call: its request came too slowly, or its results were not read"
)

_REASONS: Mapping[str, Reason] = {reason.value: reason for reason in Reason}

# What a code means when its reason is missing or newer than this client.
_BY_CODE: Mapping[grpc.StatusCode, type[RerankError]] = {
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call's status, read.

    `described` tells whether it holds an ErrorInfo of this service; `reason` is
    None where it does not or where the reason is newer than this client.
    """

    code: grpc.StatusCode
    text: str
    described: bool = False
    reason: Reason | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    violations: tuple[FieldViolation, ...] = ()

    @property
    def is_grpcs_deadline(self) -> bool:
        """Whether the time was over before the service said anything."""
        return self.code is grpc.StatusCode.DEADLINE_EXCEEDED and not self.described


def read_failure(code: grpc.StatusCode, text: str | None, trailers: Trailers | None) -> Failure:
    """Reads a status; details that cannot be parsed count as absent."""
    info, retry, bad_request = _details(trailers or ())
    if info is None:
        return Failure(code, text or "")
    return Failure(
        code,
        text or "",
        described=True,
        reason=_REASONS.get(info.reason),
        metadata=dict(info.metadata),
        retry_after=None if retry is None else retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9,
        violations=tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations),
    )


def exception_of(failure: Failure) -> RerankError:
    """Makes the exception that stands for a failure: by its reason, else by its code."""
    if failure.reason is not None:
        return errors.BY_REASON[failure.reason](
            failure.text,
            metadata=failure.metadata,
            retry_after=failure.retry_after,
            violations=failure.violations,
        )
    if failure.code is grpc.StatusCode.INVALID_ARGUMENT and failure.described:
        return errors.InvalidRequest(failure.text, metadata=failure.metadata, violations=failure.violations)
    if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED and not failure.described:
        return MessageTooLarge(failure.text)
    if failure.code is grpc.StatusCode.CANCELLED and not failure.described:
        return UnexpectedStatus(_ENDED_THERE, code=failure.code.name)
    if failure.code in _BY_CODE:
        known = _BY_CODE[failure.code]
        return known(failure.text, metadata=failure.metadata, retry_after=failure.retry_after)
    return UnexpectedStatus(
        failure.text, code=failure.code.name, metadata=failure.metadata, retry_after=failure.retry_after
    )


def retry_delay(failure: Failure, *, retries_left: int, remaining: float, jitter: float) -> float | None:
    """Tells how many seconds to wait before another attempt; None means give up.

    Only RESOURCE_EXHAUSTED with a RetryInfo is tried again here: gRPC itself
    retries UNAVAILABLE (see core.service_config), and without an ErrorInfo it
    is an oversized message, which stays one. `remaining` is the time left until
    the call's deadline, `jitter` a random number in [0, 1).
    """
    if failure.code is not grpc.StatusCode.RESOURCE_EXHAUSTED or failure.retry_after is None:
        return None
    # Later than asked, never earlier: before that moment there is no room.
    delay = max(failure.retry_after, 0.0) * (1 + JITTER * jitter)
    return delay if retries_left > 0 and delay < remaining else None


_Details = tuple[
    error_details_pb2.ErrorInfo | None, error_details_pb2.RetryInfo | None, error_details_pb2.BadRequest
]


def _details(trailers: Trailers) -> _Details:
    """Takes this service's ErrorInfo, the RetryInfo and the BadRequest out of the trailers."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad_request = error_details_pb2.BadRequest()
    found_info = found_retry = False
    try:
        for detail in _status(trailers).details:
            if not found_info and detail.Unpack(info):
                found_info = info.domain == DOMAIN
            found_retry = detail.Unpack(retry) or found_retry
            detail.Unpack(bad_request)
    except message.DecodeError:
        return None, None, bad_request
    return info if found_info else None, retry if found_retry else None, bad_request


def _status(trailers: Trailers) -> status_pb2.Status:
    for key, value in trailers:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return status_pb2.Status()
