"""How a call is sent, whatever carries it: a body beforehand, a reply with the figures it tells, a reason."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from rerank_grpc.loadtest.texts import CallTexts


class CallFailed(Exception):
    """A call that was not answered with scores; `reason` is a word for a table, the text is for people."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(text or reason)
        self.reason = reason


class ReplyFigures(NamedTuple):
    """The figures that a reply tells of itself; None where it does not."""

    results: int
    tokens: int | None = None
    cached: int | None = None  # pairs that cost the server nothing


class Transport(Protocol):
    """One server, and the connections to it."""

    name: str

    def body(self, texts: CallTexts) -> bytes:
        """Makes what is sent, before it is due."""
        ...

    async def send(self, body: bytes) -> bytes:
        """Sends a call and returns the reply as it came; raises CallFailed."""
        ...

    def read(self, reply: bytes) -> ReplyFigures:
        """Reads a reply; raises CallFailed where it is none."""
        ...

    async def facts(self) -> dict[str, Any]:
        """Asks what the server serves; raises RerankError or ConfigurationError if it is away."""
        ...

    async def close(self) -> None:
        """Ends the connections."""
        ...
