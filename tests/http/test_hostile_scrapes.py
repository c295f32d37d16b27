"""Scrapers without manners, by real sockets, while calls are made: they hold one thread, and no call."""

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerank_grpc.client import Client
from rerank_grpc.http.metrics import LEAST_PAUSE_SECONDS, MOST_CONNECTIONS
from rerank_grpc.server.server import RerankServer
from tests.http.support import ScriptedCollector, scraped
from tests.rest.support import HOST, get
from tests.support import WAIT, CountingRunner, serving, wait_for

SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
TEXT_BYTES = 8 << 20  # more than the kernel takes for a caller who does not read
MANY = 300
HOSTILE = {
    "silent": b"",
    "slow head": b"GET /metrics HTTP/1.1\r\nHost: ",
    "slow body": b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n",
    "slow reader": SCRAPE,
    "many scrapes ahead": SCRAPE * 50,
    "many other requests ahead": b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n" * 500,
    "huge head": b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 200_000,
    "garbage": b"\x16\x03\x01" + bytes(1_000),
}


@pytest.fixture(scope="module")
def server() -> Iterator[RerankServer]:
    with serving(runner=CountingRunner()) as server:
        yield server


def hostile(port: int, sent: bytes) -> socket.socket:
    """Opens a connection that sends this and reads nothing."""
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    caller.settimeout(WAIT)
    caller.connect((HOST, port))
    caller.setblocking(False)
    with contextlib.suppress(BlockingIOError, ConnectionError):
        caller.send(sent)
    return caller


def held(port: int) -> int:
    """Counts the connections to a port that its server has not closed, by the kernel's own table."""
    ends = [line.split()[1:4:2] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established, left_by_peer = "01", "08"
    return sum(
        address.endswith(f":{port:04X}") and state in (established, left_by_peer) for address, state in ends
    )


def threads_beside(before: set[threading.Thread]) -> set[threading.Thread]:
    """Finds new threads, but for those of calls: one may begin before the last is free."""
    return {each for each in set(threading.enumerate()) - before if not each.name.startswith("rerank_")}


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


@pytest.mark.clock
@pytest.mark.parametrize("kind", HOSTILE)
def test_hundreds_of_hostile_scrapers_hold_one_thread_and_no_call(server: RerankServer, kind: str) -> None:
    before, memory = set(threading.enumerate()), memory_mib()
    with (
        scraped(ScriptedCollector(size=TEXT_BYTES)) as port,
        Client(f"{HOST}:{server.port}") as client,
        contextlib.ExitStack() as ends,
    ):
        slowest = 0.0
        for number in range(MANY):
            ends.enter_context(hostile(port, HOSTILE[kind]))
            if not number % 10:
                begin = time.monotonic()
                assert client.rerank("q", [f"{kind} {number}"]).results
                slowest = max(slowest, time.monotonic() - begin)
        assert len(threads_beside(before)) <= 1
        assert slowest < 2
        wait_for(lambda: held(port) <= MOST_CONNECTIONS)
        assert client.rerank("q", ["d"]).results
    # Each connection that stays may keep a text.
    assert memory_mib() - memory < 2 * MOST_CONNECTIONS * TEXT_BYTES / (1 << 20) + 100


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_scraper_with_manners_is_served_beside_them(kind: str) -> None:
    def gets_in() -> bool:
        try:
            return get(port, "/metrics").status == 200
        except ConnectionError:
            return False

    with scraped(ScriptedCollector(size=TEXT_BYTES)) as port, contextlib.ExitStack() as ends:
        for _ in range(3 * MOST_CONNECTIONS):
            ends.enter_context(hostile(port, HOSTILE[kind]))
        wait_for(gets_in)


def test_no_request_gets_more_than_its_share_of_the_processor() -> None:
    """Requests for other paths take turns with a pause between, as scrapes do."""
    with scraped(ScriptedCollector()) as port:
        answered, began = 0, time.monotonic()
        with hostile(port, HOSTILE["many other requests ahead"]) as caller:
            caller.settimeout(WAIT)
            while answered < 200:
                part = caller.recv(1 << 16)
                assert part, f"closed after {answered} answers"
                answered += part.count(b"HTTP/1.1 404")
            seconds = time.monotonic() - began
    assert answered <= seconds / LEAST_PAUSE_SECONDS + 1


def test_a_collector_that_hangs_holds_no_call(server: RerankServer) -> None:
    let = threading.Event()
    with (
        scraped(ScriptedCollector(let.wait)) as port,
        Client(f"{HOST}:{server.port}") as client,
        contextlib.ExitStack() as ends,
    ):
        before = set(threading.enumerate())
        for _ in range(MANY):
            ends.enter_context(hostile(port, SCRAPE))
        for number in range(20):
            assert client.rerank("q", [f"held {number}"], timeout=WAIT).results
        assert not threads_beside(before)
        let.set()
