"""What connections that nobody uses cost: they are bounded, and dropped when they say nothing."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from rerank_grpc.server import server as server_module
from tests.server.test_patience import check, rerank
from tests.support import CountingRunner, serving, wait_for


@contextmanager
def silent(port: int | None, count: int) -> Iterator[list[socket.socket]]:
    """Connects and says nothing."""
    with ExitStack() as opened:
        yield [
            opened.enter_context(socket.create_connection(("127.0.0.1", port or 0), timeout=20))
            for _ in range(count)
        ]


def is_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while data := connection.recv(65_536):
            assert data
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@pytest.mark.clock
def test_two_thousand_connections_that_say_nothing_keep_nobody_out():
    with serving(runner=CountingRunner()) as server, silent(server.port, 2_000):
        assert check(server.port) < 1
        assert check(server.admin_port) < 1
        assert rerank(server.port) < 1


@pytest.mark.clock
def test_a_port_takes_only_so_many_connections_and_drops_those_that_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 20)
    monkeypatch.setattr(server_module, "HANDSHAKE_SECONDS", 0.5)
    with serving(runner=CountingRunner()) as server, silent(server.port, 100) as connections:
        wait_for(lambda: sum(map(is_open, connections)) <= 20)
        # The REST server has a port of its own: a stranger cannot take its connections.
        assert rerank(server.local_port) < 1
        assert check(server.admin_port) < 1
        wait_for(lambda: not any(map(is_open, connections)))
        assert check(server.port) < 1
