"""The alert of a handshake that fails, which asyncio would keep to itself."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

# Whoever shakes hands in this context: gets the alert, and the error that it tells of.
TellFailure = Callable[[bytes, ssl.SSLError], None]
TELL_FAILURE: ContextVar[TellFailure | None] = ContextVar("tell_failure", default=None)


class TellingContext(ssl.SSLContext):
    """A context whose connections hand the alert of a failed handshake to TELL_FAILURE's function.

    asyncio closes such a connection before it sends what OpenSSL has written, so that callers would be told
    neither that their certificate has expired nor that they have sent none.
    """

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *options: Any, **named: Any
    ) -> ssl.SSLObject:
        """Wraps two buffers, as ssl.SSLContext does."""
        self.sslobject_class = _TellingObject
        made = super().wrap_bio(incoming, outgoing, *options, **named)
        if isinstance(made, _TellingObject):
            made.outgoing, made.tell = outgoing, TELL_FAILURE.get()
        return made


class _TellingObject(ssl.SSLObject):
    outgoing: ssl.MemoryBIO
    tell: TellFailure | None = None

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            if self.tell is not None:
                self.tell(self.outgoing.read(), error)
            raise
