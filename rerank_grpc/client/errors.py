"""The failures that only a caller sees, the exception of each failed call, and whether to try again.

errors.RerankError
└── TransportError            no reason that this client knows came with the status
    ├── ServerUnavailable     retried by gRPC
    │   └── TlsError          no TLS connection comes about; `problem` says why
    ├── MessageTooLarge
    ├── IncompleteStream      results may be missing
    ├── RevisionChanged       the model was replaced, twice, while a large call was answered in parts
    └── UnexpectedStatus      `code` says which
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import grpc

from rerank_grpc import __version__, errors
from rerank_grpc.config.targets import Proxy
from rerank_grpc.errors import RerankError
from rerank_grpc.tls.diagnosis import TlsProblem
from rerank_grpc.wire.status import SHORTEST_DELAY_SECONDS, Failure

# The largest random share that is added to a wait: callers refused together return apart.
JITTER = 0.2
# An address that fails is called again after so long, if there are others.
OUT_SECONDS = 1.0

# gRPC's own text says no more than that the stream was reset.
_ENDED_THERE = (
    "the server or a proxy ended the call: its request came too slowly, or its results were not read"
)

# What gRPC's libraries say of a message's size: grpc-core, grpc-go and grpc-js; grpc-java and .NET; Connect.
_TOO_LARGE = re.compile(
    r"message (after decompression )?larger than max"
    r"|message (that decompresses to|with) a size larger than"
    r"|message exceeds (the )?maximum (configured message )?size"
    r"|message too large \d"
    r"|larger than configured (read|write)MaxBytes",
    re.IGNORECASE,
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


class RevisionChanged(TransportError):
    """The parts of a large call were scored by different revisions of the model, and so were they again."""


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
    # A proxy's rate limit has the same code.
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not failure.described and _TOO_LARGE.search(text):
        return MessageTooLarge(too_large(text))
    if code is grpc.StatusCode.CANCELLED and not failure.described:
        return UnexpectedStatus(_ENDED_THERE, code=code.name)
    if code is grpc.StatusCode.UNAVAILABLE and proxy is not None:
        text = f"{text} ({proxy})"
    if code in _BY_CODE:
        return _BY_CODE[code](text, metadata=failure.metadata, retry_after=failure.retry_after)
    return UnexpectedStatus(text, code=code.name, metadata=failure.metadata, retry_after=failure.retry_after)


def asked_delay(failure: Failure, *, elsewhere: bool, patient: bool) -> float | None:
    """Tells for how many seconds an address is not to be called again; None means that the call has failed.

    At one address gRPC itself retries UNAVAILABLE and CANCELLED, so here only RESOURCE_EXHAUSTED with a
    RetryInfo is tried again: an oversized message stays one. Where there are others (`elsewhere`) gRPC
    retries nothing. A `patient` call comes back after whatever refusal told it when, but never at once.
    """
    code, after = failure.code, failure.retry_after
    if patient and after is not None:
        return max(after, SHORTEST_DELAY_SECONDS)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and after is not None:
        return max(after, 0.0)
    lost = code is grpc.StatusCode.UNAVAILABLE
    ended = code is grpc.StatusCode.CANCELLED and not failure.described
    if elsewhere and (lost or ended):
        return OUT_SECONDS if after is None else max(after, 0.0)
    return None


def too_large(text: str) -> str:
    """Adds to gRPC's words what helps against a message that is too large."""
    if "larger than max" not in text:
        return text
    if "eceived" in text and "SERVER" not in text:
        return f"{text}: ask for fewer results with top_n, or without return_documents"
    return f"{text}: send shorter documents, or fewer in a call; `rerank` splits between documents by itself"


def unimplemented(
    target: str, method: str, words: str | None, code: grpc.StatusCode | None
) -> UnexpectedStatus:
    """Makes the error of a method that a server lacks; `code` is that of an empty Rerank there."""
    if code is grpc.StatusCode.UNIMPLEMENTED:
        text = f"{target} is a gRPC server of another service: name the address of the rerank server"
    else:
        text = (
            f"{target} has no {method}: it is of another version than this client ({__version__}), and the "
            "older one wants an upgrade; or it is not the rerank server"
        )
    return UnexpectedStatus(f"{text} ({words})", code="UNIMPLEMENTED")
