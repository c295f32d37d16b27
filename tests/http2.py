"""HTTP/2 written by hand, for callers that no gRPC library would be: without a body, or without eyes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4


class RawConnection:
    """A connection whose peer sees just what is sent here; what comes back is read only by `receive_until`.

    With a `window` of 0 the peer may send no message at all.
    """

    def __init__(self, port: int | None, *, window: int | None = None) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port or 0), timeout=20)
        self._stream = -1
        setting = b"" if window is None else struct.pack(">HI", INITIAL_WINDOW_SIZE, window)
        self.send(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, setting) + frame(SETTINGS, ACK, 0)
        )

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def call(
        self,
        method: str,
        message: bytes | None = None,
        *,
        metadata: Iterable[tuple[str, str]] = (),
        promised: int | None = None,
    ) -> None:
        """Starts a call: its headers, and its message if there is one.

        With `promised`, the message says that it has so many bytes, and `message`
        is all of it that comes.
        """
        self._stream += 2
        self.send(frame(HEADERS, END_HEADERS, self._stream, _headers(method, metadata)))
        if message is None:
            return
        data = struct.pack(">BI", 0, len(message) if promised is None else promised) + message
        pieces = [data[at : at + 16_384] for at in range(0, len(data), 16_384)]
        for piece in pieces:
            last = piece is pieces[-1] and promised is None
            self.send(frame(DATA, END_STREAM if last else 0, self._stream, piece))

    def receive_until(self, mark: bytes) -> bytes:
        """Reads until something has come, or the connection ends."""
        received = b""
        while mark not in received and (data := self._socket.recv(65_536)):
            received += data
        return received

    def close(self) -> None:
        self._socket.close()


@contextmanager
def raw_connections(
    port: int | None, count: int, *, window: int | None = None
) -> Iterator[list[RawConnection]]:
    """Opens connections, and closes them."""
    opened: list[RawConnection] = []
    try:
        for _ in range(count):
            opened.append(RawConnection(port, window=window))
        yield opened
    finally:
        for connection in opened:
            connection.close()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _headers(method: str, metadata: Iterable[tuple[str, str]]) -> bytes:
    """Encodes a request's headers, each as a literal that is not indexed (RFC 7541, 6.2.2)."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *metadata,
    ]
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def _string(text: str) -> bytes:
    data = text.encode()
    assert len(data) < 127
    return bytes([len(data)]) + data
