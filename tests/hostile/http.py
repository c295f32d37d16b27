"""HTTP/1.1 written by hand, for bodies that no library would send."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable

from tests.support import WAIT

HOST = "127.0.0.1"


def sent(port: int, head: bytes, body: Iterable[bytes] = ()) -> tuple[int, bytes]:
    """Sends a request until the peer takes no more; returns the status and all that came back."""
    with socket.create_connection((HOST, port), timeout=WAIT) as connection:
        try:
            connection.sendall(head)
            for piece in body:
                connection.sendall(piece)
        except ConnectionError:
            pass  # refused before all of it was there
        answer = received(connection)
    status = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return int(status[1]) if status else 0, answer


def received(connection: socket.socket) -> bytes:
    """Reads the first answer of a connection to its end, as far as it comes."""
    answer = b""
    try:
        while not complete(answer) and (piece := connection.recv(65_536)):
            answer += piece
    except ConnectionError:
        pass
    return answer


def complete(answer: bytes) -> bool:
    """Tells whether an answer with a length is there as a whole."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
    return bool(end and length and len(body) >= int(length[1]))
