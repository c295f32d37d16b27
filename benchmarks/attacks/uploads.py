"""A message that never ends, over HTTP/2 written by hand: as much of it as the server has room for."""

from __future__ import annotations

import struct

from tests.http2 import ACK, DATA, INITIAL_WINDOW_SIZE, SETTINGS, RawConnection, frame

RST_STREAM, PING, GOAWAY, WINDOW_UPDATE = 3, 6, 7, 8
FRAME_BYTES = 16_384


class Upload(RawConnection):
    """A connection with one call, which sends its message no faster than the server allows."""

    def __init__(self, port: int, method: str, promised: int) -> None:
        super().__init__(port)
        self._window, self._stream_window, self._initial = 65_535, 65_535, 65_535
        self.call(method, b"", promised=promised)

    def send_message(self, data: memoryview) -> None:
        """Sends data of the message; raises OSError when the server ends the call."""
        while data:
            room = min(self._window, self._stream_window, FRAME_BYTES)
            if room > 0:
                self.send(frame(DATA, 0, self._stream, bytes(data[:room])))
                self._window -= len(data[:room])
                self._stream_window -= len(data[:room])
                data = data[room:]
            else:
                self._take_frame()

    def wait_for_end(self) -> None:
        """Waits until the server ends the call, which raises OSError."""
        while True:
            self._take_frame()

    def _take_frame(self) -> None:
        head = self._receive(9)
        length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
        payload = self._receive(length)
        if kind in (RST_STREAM, GOAWAY):
            raise OSError("the server has ended the call")
        if kind == WINDOW_UPDATE:
            if head[5:] == bytes(4):
                self._window += int.from_bytes(payload)
            else:
                self._stream_window += int.from_bytes(payload)
        if kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        if kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == INITIAL_WINDOW_SIZE:
                    self._stream_window += value - self._initial
                    self._initial = value

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            if not (more := self._socket.recv(count - len(data))):
                raise OSError("the server has closed the connection")
            data += more
        return data
