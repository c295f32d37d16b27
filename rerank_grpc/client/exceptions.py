"""The failures that only a caller sees: those that came without a reason.

The service's own errors are in :mod:`rerank_grpc.errors`, the same classes on
both sides of the wire. These derive from the same base, so that one
``except RerankError`` catches every failed call.
"""

from __future__ import annotations

from collections.abc import Mapping

from rerank_grpc.errors import RerankError


class TransportError(RerankError):
    """A call failed and no reason that this client knows came with it.

    The status is gRPC's own, a proxy's, or that of a newer server; `reason` is
    None.
    """

    reason = None  # type: ignore[assignment]


class ServerUnavailable(TransportError):
    """No server answered: none listens, the connection broke, or it went away."""


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
