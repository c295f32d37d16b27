"""Errors to HTTP: one table, and the common error body."""

from __future__ import annotations

import http
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rerank_grpc import client as errors
from rerank_grpc.client import RerankError
from rerank_grpc.errors import InternalError
from rerank_grpc.http.errors import HttpError
from rerank_grpc.limits import LIMITS
from rerank_grpc.units import in_bytes

# 499 is nginx's word for a caller who has left; the standard library has none.
STATUSES: dict[type[RerankError], int] = {
    errors.InvalidRequest: 400,
    errors.UnsupportedOption: 400,
    errors.UnknownModel: 404,
    errors.ModelLoading: 503,
    errors.ModelFailed: 503,
    errors.QueueFull: 429,
    errors.DeadlineUnreachable: 504,
    errors.RateLimited: 429,
    errors.DeadlineExceeded: 504,
    errors.Cancelled: 499,
    errors.PairTooLarge: 413,
    errors.Unauthenticated: 401,
    errors.PermissionDenied: 403,
    errors.ShuttingDown: 503,
    errors.InternalError: 500,
    errors.TransportError: 500,
    errors.ServerUnavailable: 503,
    errors.TlsError: 503,
    errors.MessageTooLarge: 413,
    errors.IncompleteStream: 500,
    errors.RevisionChanged: 503,
    errors.UnexpectedStatus: 500,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error on its way to the caller; `empty` tells that nothing was to be scored.

    `error` is the service's own, None for one of HTTP.
    """

    status: int
    code: str
    message: str
    headers: Mapping[str, str]
    empty: bool = False
    token_sent: bool = False
    error: RerankError | None = None


def problem_of(error: Exception, *, token_sent: bool = False, more_time: str = "") -> Problem:
    """Makes a problem of an error; the text of an unforeseen one is fixed.

    `more_time` tells a call that had too little how it gets more.
    """
    if isinstance(error, HttpError):
        return Problem(error.status, _code_of(error.status), error.message, error.headers)
    if not isinstance(error, RerankError):
        error = InternalError()
    status, message = _told(error)
    if status == 504 and more_time:
        message = f"{message}; {more_time}"
    return Problem(
        status=status,
        code=error.reason.removeprefix("ERROR_REASON_").lower() if error.reason else _code_of(status),
        message=message,
        headers=_headers(status, error.retry_after),
        empty=any("must not be empty" in violation.description for violation in error.violations),
        token_sent=token_sent,
        error=error,
    )


def _told(error: RerankError) -> tuple[int, str]:
    status = STATUSES.get(type(error), 500)
    if isinstance(error, errors.DeadlineExceeded):
        # Server and client see the deadline pass at the same time, and either may tell it.
        return status, "the time of the call passed before its answer was there"
    if not isinstance(error, errors.TransportError):
        return status, error.message
    if isinstance(error, errors.UnexpectedStatus) and error.code == "CANCELLED":
        # A server ends a call whose message reaches it too slowly, or for which it has no free place.
        return 503, "the rerank server ended the call before it had all of it: send it again"
    if isinstance(error, errors.UnexpectedStatus) and error.code == "RESOURCE_EXHAUSTED":
        # Without a reason of the service, and not about a size: a proxy's own limit.
        return 503, "what stands before the rerank server refuses calls for now: send it again later"
    # gRPC's own texts name addresses and versions, which are no caller's business.
    return status, _TRANSPORT_TEXTS.get(status, "internal error")


def _headers(status: int, retry_after: float | None) -> dict[str, str]:
    if status in (429, 503) or retry_after is not None:
        return {"retry-after": str(max(1, math.ceil(retry_after or 0)))}
    return {"www-authenticate": "Bearer"} if status == 401 else {}


_TRANSPORT_TEXTS = {
    413: f"the request has more than {in_bytes(LIMITS.message_bytes)}, or the answer more than "
    f"{in_bytes(LIMITS.reply_bytes)}: send fewer or shorter documents",
    503: "the rerank server cannot be reached at the moment",
}


def _code_of(status: int) -> str:
    return "cancelled" if status == 499 else http.HTTPStatus(status).phrase.lower().replace(" ", "_")


def common_body(problem: Problem) -> tuple[int, Any]:
    """Tells an error in every shape at once that clients of the non-TEI dialects parse."""
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    return problem.status, {
        "detail": problem.message,
        "message": problem.message,
        "error": {"message": problem.message, "type": kind, "param": None, "code": problem.code},
    }
