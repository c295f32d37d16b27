"""HTTP/1.1 without many small chunks, which cost as much as large ones each, nor two ends of one body."""

from __future__ import annotations

from typing import Any

import h11

# A chunk takes about 25 µs on the loop that answers everybody, whatever its size. A body may have this many
# for nothing, 0.1 s of them, and then one for each so many bytes, which take longer to come than to read.
FREE_CHUNKS, BYTES_PER_CHUNK = 4_000, 64


class CoarseConnection(h11.Connection):
    """A server's side of a connection that refuses bodies in many small chunks as no HTTP, or of two lengths.

    `too_fine` tells that this was the reason.
    """

    def __init__(self, most_head_bytes: int) -> None:
        super().__init__(h11.SERVER, most_head_bytes)
        self.too_fine = False
        self._chunks = self._bytes = 0

    def next_event(self) -> Any:
        """Returns the next event; raises RemoteProtocolError also at a chunk too many and a second length."""
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._bytes += len(event.data)
            self._chunks += event.chunk_start
            if self._chunks > FREE_CHUNKS + self._bytes // BYTES_PER_CHUNK:
                self.too_fine = True
                raise h11.RemoteProtocolError("too many small chunks")
        elif isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
            # Where such a body ends, a proxy in front may see otherwise, and take one caller's request for
            # part of another's. h11 reads chunks then, and keeps the connection.
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                raise h11.RemoteProtocolError("a body with a length and in chunks")
        return event
