"""The failures that only a caller sees, the exception of each failed call, and whether to try again.

errors.RerankError
└── TransportError            no reason that this client knows came with the status
    ├── ServerUnavailable     retried by gRPC
    │   └── TlsError          no TLS connection comes about; `problem` says why
    ├── MessageTooLarge
    ├── IncompleteStream      results may be missing
    └── UnexpectedStatus      `code` says which
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from rerank_grpc import errors
from rerank_grpc.config.targets import Proxy
from rerank_grpc.errors import RerankError
from rerank_grpc.tls.diagnosis import TlsProblem
from rerank_grpc.wire.status import Failure

# The largest random share that is added to a wait: callers refused together return apart.
JITTER = 0.2

# gRPC's own text says no more than that the stream was reset.
_ENDED_THERE = (
    "the server or a proxy ended the call: its request came too slowly, or its results were not read"
)


class TransportError(RerankError):
    """A failure whose status is gRPC's own, a proxy's, or a newer server's; `reason` is None."""

    reason = None  # type: ignore[assignment]


class ServerUnavailable(TransportError):
    """No server answered: none listens, the connection broke, or it went away."""


class TlsError(ServerUnavailable):
    """No TLS connection comes about, and the text says why; a retry does not help until somebody acts.

    `problem` tells it to programs: a certificate of an unknown CA, of another name, or out of its time; TLS
    where the server speaks none, or none where it does; no certificate of the caller's, or a refused one.
    """

    def __init__(self, message: str, *, problem: TlsProblem, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.problem = problem


class MessageTooLarge(TransportError):
    """The request or the reply is larger than one side allows; a retry does not help."""


class IncompleteStream(TransportError):
    """A stream of results ended without its summary: results may be missing."""


class UnexpectedStatus(TransportError):
    """A status that came without a reason of the service; `code` is its name, e.g. "UNIMPLEMENTED".

    "CANCELLED" is a call that the server or a proxy has ended, not the caller.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}", metadata=metadata, retry_after=retry_after)
        self.code = code


# The meaning of a code whose reason is missing or newer than this client.
_BY_CODE: Mapping[grpc.StatusCode, type[RerankError]] = {
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
}


def exception_of(failure: Failure, proxy: Proxy | None = None) -> RerankError:
    """Makes the exception of a failure: by its reason, else by its code; names the proxy of a lost server."""
    code, text = failure.code, failure.text
    if failure.reason is not None:
        return errors.BY_REASON[failure.reason](
            text,
            metadata=failure.metadata,
            retry_after=failure.retry_after,
            violations=failure.violations,
        )
    if code is grpc.StatusCode.INVALID_ARGUMENT and failure.described:
        return errors.InvalidRequest(text, metadata=failure.metadata, violations=failure.violations)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not failure.described:
        return MessageTooLarge(text)
    if code is grpc.StatusCode.CANCELLED and not failure.described:
        return UnexpectedStatus(_ENDED_THERE, code=code.name)
    if code is grpc.StatusCode.UNAVAILABLE and proxy is not None:
        text = f"{text} ({proxy})"
    if code in _BY_CODE:
        return _BY_CODE[code](text, metadata=failure.metadata, retry_after=failure.retry_after)
    return UnexpectedStatus(text, code=code.name, metadata=failure.metadata, retry_after=failure.retry_after)


def retry_delay(failure: Failure, *, retries_left: int, remaining: float, jitter: float) -> float | None:
    """Tells how many seconds to wait before another attempt; None means give up.

    Only RESOURCE_EXHAUSTED with a RetryInfo is tried again here: gRPC itself
    retries UNAVAILABLE, and an oversized message stays one. `remaining` is the
    seconds until the call's deadline, `jitter` a random number in [0, 1).
    """
    if failure.code is not grpc.StatusCode.RESOURCE_EXHAUSTED or failure.retry_after is None:
        return None
    # Later than asked, never earlier: before that moment there is no room.
    delay = max(failure.retry_after, 0.0) * (1 + JITTER * jitter)
    return delay if retries_left > 0 and delay < remaining else None
