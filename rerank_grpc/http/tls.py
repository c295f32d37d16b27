"""TLS before an HTTP protocol: each connection shakes hands by the certificate in force."""

from __future__ import annotations

import asyncio
import logging
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from functools import partial
from typing import Any

from rerank_grpc.http.protocol import Connections, PatientProtocol, Turn
from rerank_grpc.tls.alerts import TELL_FAILURE
from rerank_grpc.tls.names import CERTIFICATE, name_in_certificate
from rerank_grpc.tls.serving import Certificates

log = logging.getLogger(__name__)

# A connection that has not shaken hands by then is closed.
HANDSHAKE_SECONDS = 10.0
# A peer that does not answer the goodbye is cut off after this.
GOODBYE_SECONDS = 2.0
# The answer to a caller that speaks plain HTTP.
_TEXT = b"this port speaks TLS: call it by https://\n"
PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_TEXT), _TEXT)
)
# asyncio encrypts a whole write at once, and sees only afterwards how much of it waits for its reader.
PIECE_BYTES = 65_536
# asyncio gives each connection, silent ones too, a buffer of 256 KiB to read into: 1 GiB for all that a port
# takes. TLS comes in records of 16 KiB at most. There is no way to say so to one connection alone.
READ_BYTES = 32_768
SSLProtocol.max_size = READ_BYTES


class Handshake(asyncio.Protocol):
    """A connection until it has shaken hands; then `make` makes the protocol that it has from there on.

    asyncio's own way, a context for the whole server, keeps one certificate for good, and tells of no
    connection before its handshake. Here each begins with the context of that moment, and has its place among
    `connections`, in which those that wait for their callers make room.
    """

    def __init__(
        self,
        certificates: Certificates,
        connections: Connections,
        make: Callable[[], PatientProtocol],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._certificates, self._connections, self._make, self._loop = certificates, connections, make, loop
        self._task: asyncio.Task[None] | None = None
        self._protocol: PatientProtocol | None = None
        self._received = bytearray()
        self._ended = self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._connections.make_room(transport)
        self._connections.note(transport, Turn.CALLER)
        self._task = self._loop.create_task(self._shake(transport))

    def data_received(self, data: bytes) -> None:
        """Keeps what comes right behind the handshake, before the protocol is there."""
        self._received += data

    def eof_received(self) -> None:
        self._ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._protocol is not None:  # asyncio has chosen whom to tell before the protocol was there
            self._protocol.connection_lost(exc)

    async def _shake(self, plain: asyncio.Transport) -> None:
        TELL_FAILURE.set(partial(_tell, plain))
        try:
            transport = await self._loop.start_tls(
                plain,
                self,
                self._certificates.context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=GOODBYE_SECONDS,
            )
        except (OSError, ValueError, asyncio.CancelledError) as error:  # ValueError: a name that is no text
            plain.abort()
            log.debug("a handshake failed: %s", getattr(error, "reason", None) or type(error).__name__)
            return
        finally:
            self._connections.forget(plain)
        if transport is not None and not self._lost:  # None where the caller has left meanwhile
            self._begin(transport)

    def _begin(self, transport: asyncio.Transport) -> None:
        """Hands the connection, and what has come over it, to its protocol."""
        protocol = self._protocol = self._make()
        transport.set_protocol(protocol)
        protocol.connection_made(Pieces(transport))
        if self._received:
            protocol.data_received(bytes(self._received))
        if self._ended:
            protocol.eof_received()


def _tell(plain: asyncio.Transport, alert: bytes, error: ssl.SSLError) -> None:
    """Sends a caller whose handshake fails the alert, or what a caller without TLS understands."""
    plain.write(PLAIN_HTTP if error.reason == "HTTP_REQUEST" else alert)


class Pieces(asyncio.Transport):
    """A transport of TLS that takes a large write in pieces, so that asyncio's flow control sees them."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        transport.set_write_buffer_limits(high=PIECE_BYTES)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), PIECE_BYTES):
            self._transport.write(view[start : start + PIECE_BYTES])

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == CERTIFICATE:
            shown = self._transport.get_extra_info("ssl_object").getpeercert()
            return name_in_certificate(shown) if shown else None
        return self._transport.get_extra_info(name, default)

    def write_eof(self) -> None:
        """Does nothing: TLS has no half of a connection to close."""

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()
