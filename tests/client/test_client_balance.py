"""Round robin over all addresses of a name, around a server that refuses, while servers are restarted."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from math import isfinite

import grpc

from rerank_grpc.client import Client
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import Reason
from rerank_grpc.server.server import RerankServer
from tests.client.scripted_server import ScriptedServer, fail
from tests.ports import free_port
from tests.support import wait_for

HOSTS = ("127.0.0.1", "127.0.0.2")
CALLERS, RESTARTS = 16, 6


def started(host: str, port: int = 0) -> RerankServer:
    """Starts a server of the embedded model at an address."""
    server = RerankServer(ServerSettings(host=host, port=port, admin_port=None))
    server.start()
    assert server.wait_until_loaded(60)
    return server


def is_called(server: RerankServer) -> bool:
    """Tells whether a server has had a call."""
    return isfinite(server.quiet_seconds())


@contextmanager
def name_server() -> Iterator[int]:
    """Answers each question for IPv4 addresses with HOSTS, any other with nothing; yields its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=answer, args=[listening])
        thread.start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", listening.getsockname())
            thread.join()


def answer(listening: socket.socket) -> None:
    """Answers questions until an empty one comes."""
    while True:
        asked, asker = listening.recvfrom(4_096)
        if not asked:
            return
        end = asked.index(b"\0", 12) + 5  # the name's end, its type and its class
        hosts = HOSTS if asked[end - 4 : end - 2] == b"\0\1" else ()
        head = asked[:2] + b"\x81\x80\0\1" + len(hosts).to_bytes(2) + bytes(4)
        # The name is the question's; an address, of the internet, good for 60 s, 4 bytes long.
        record = bytes.fromhex("c00c 0001 0001 0000003c 0004")
        listening.sendto(
            head + asked[12:end] + b"".join(record + socket.inet_aton(each) for each in hosts), asker
        )


def test_every_address_of_a_name_gets_its_turn():
    first = started(HOSTS[0])
    servers = [first, started(HOSTS[1], first.port)]
    try:
        with (
            name_server() as names,
            Client(f"dns://127.0.0.1:{names}/rerank.example:{first.port}") as client,
        ):

            def both_are_called() -> bool:
                client.rerank("query", ["document"])
                return all(map(is_called, servers))

            # The first to be connected has all calls until then.
            wait_for(both_are_called)
    finally:
        for server in servers:
            server.stop(5)


def test_calls_go_around_a_server_that_is_not_ready(connect):
    well, ill = ScriptedServer(), ScriptedServer()
    ill.otherwise = fail(grpc.StatusCode.UNAVAILABLE, reason=Reason.MODEL_LOADING, retry_after=0.05)
    for server in (well, ill):
        server.start()
    client = connect(f"ipv4:{well.target},{ill.target}")
    made = count(1)
    # Those to the other were refused first, and none failed; the first to be connected has all until then.
    wait_for(
        lambda: bool(client.rerank("query", ["document"]).results) and next(made) >= 10 and bool(ill.calls)
    )
    assert len(well.calls) == next(made) - 1
    for server in (well, ill):
        server.stop()


def test_no_call_fails_while_servers_are_restarted_one_after_the_other():
    """gRPC's server says CANCELLED to calls that were on their way when it stopped."""
    # At ports that nobody gets by asking for any one while they are away.
    servers = [started(HOSTS[0], free_port()) for _ in range(2)]
    over, outcomes = threading.Event(), Counter[str]()
    target = "ipv4:" + ",".join(f"{HOSTS[0]}:{server.port}" for server in servers)

    def repeat(client: Client) -> None:
        while not over.is_set():
            try:
                client.rerank("query", ["document"])
                outcomes["ok"] += 1
            except Exception as error:
                outcomes[str(error)] += 1

    with Client(target) as client, ThreadPoolExecutor(CALLERS) as threads:
        running = [threads.submit(repeat, client) for _ in range(CALLERS)]
        try:
            for turn in range(RESTARTS):
                old = servers[turn % 2]
                old.stop(10)
                servers[turn % 2] = started(HOSTS[0], old.port)
                # The other must not stop before this one is found again.
                wait_for(partial(is_called, servers[turn % 2]))
        finally:
            over.set()
        for each in running:
            each.result()
    for server in servers:
        server.stop(5)
    assert set(outcomes) == {"ok"}, outcomes
