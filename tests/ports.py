"""Ports of this machine: one for a server to come, and one that refuses."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator

# Above the ports of Ray's workers, below those that the kernel gives to a socket that asks for any one.
LOWEST, HIGHEST = 26_000, 32_000


def free_port(host: str = "127.0.0.1") -> int:
    """Finds a port on which nothing listens, and that no other test gets meanwhile by asking for any one."""
    for port in random.sample(range(LOWEST, HIGHEST), 100):
        with contextlib.suppress(OSError), socket.create_server((host, port)):
            return port
    raise AssertionError("no port is free")


@contextlib.contextmanager
def refusing_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Holds a port that refuses every connection: nobody else can listen there meanwhile."""
    with socket.socket() as held:
        held.bind((host, 0))
        yield int(held.getsockname()[1])
