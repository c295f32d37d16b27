"""What REST costs: over the gRPC call itself, in calls per second, and beside slow callers.

    python benchmarks/rest_cost.py

Three processes: a gRPC server whose model costs nothing, the REST server, and this
one, which calls. A warm-up comes first; the two protocols take turns, so that
what else the machine does meets both. Prints medians, 99th percentiles and
rates; compare nothing across machines.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROUNDS = 300
CALLERS = 8
SECONDS = 8.0
SLOW = 200
WORDS = "the quick brown fox jumps over the lazy dog and runs away from all of its many friends " * 6


def server(pipe: multiprocessing.connection.Connection) -> None:
    """Serves gRPC with a model that costs nothing until it is told to end."""
    from tests.support import CountingRunner, serving

    class Free(CountingRunner):
        """Keeps no batches: they would fill the memory."""

        def run(self, sequences):  # type: ignore[no-untyped-def]
            return [0.5] * len(sequences)

    with serving(runner=Free()) as running:
        pipe.send(running.port)
        pipe.recv()


def rest_server(pipe: multiprocessing.connection.Connection, target: int) -> None:
    """Serves REST in front of it until it is told to end."""
    from tests.rest.support import rest_server as running

    with running(target) as port:
        pipe.send(port)
        pipe.recv()


@contextmanager
def process(work: Callable[..., None], *arguments: object) -> Iterator[tuple[int, int]]:
    """Runs one of the two in a process; yields its port and process id."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=work, args=(theirs, *arguments))
    child.start()
    try:
        yield ours.recv(), child.pid or 0
    finally:
        ours.send("end")
        child.join(30)


class Rest:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._connection.connect()
        assert self._connection.sock is not None
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, body: bytes) -> None:
        """Posts, and reads the answer to its end."""
        self._connection.request("POST", "/v1/rerank", body)
        response = self._connection.getresponse()
        assert response.status == 200, response.read()
        response.read()


def latency(rest_port: int, grpc_port: int, documents: int) -> tuple[list[float], list[float]]:
    """Times calls of both protocols in turns, the same bodies for both."""
    from rerank_grpc.client import Client

    rest, over_rest, over_grpc = Rest(rest_port), [], []
    with Client(f"127.0.0.1:{grpc_port}") as client:
        for number in range(ROUNDS + 30):
            # Each call is new: what the server knows would not be scored again.
            texts = [f"{number} {index} {WORDS}" for index in range(documents)]
            body = json.dumps({"query": "a query", "documents": texts}).encode()
            begin = time.perf_counter()
            client.rerank("a query", texts)
            middle = time.perf_counter()
            rest.call(body)
            end = time.perf_counter()
            if number >= 30:
                over_grpc.append(middle - begin)
                over_rest.append(end - middle)
    return over_rest, over_grpc


def keep_calling(port: int, until: float) -> int:
    """Makes small calls until a moment; returns how many."""
    rest, count = Rest(port), 0
    while time.time() < until:
        rest.call(b'{"query": "q %d", "documents": ["one", "two"]}' % count)
        count += 1
    return count


def rate(port: int) -> float:
    """Counts small calls per second of several callers."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(keep_calling, [port] * 2, [time.time() + 0.5] * 2))
        until = time.time() + SECONDS
        return sum(pool.map(several, [port] * 2, [until] * 2)) / SECONDS


def several(port: int, until: float) -> int:
    """Runs half of the callers, in threads."""
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda: counts.append(keep_calling(port, until))) for _ in range(CALLERS // 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def beside_slow_callers(port: int) -> tuple[float, float, float]:
    """Times good calls alone, then beside slow ones; and how long those keep their sockets."""
    rest = Rest(port)

    def one() -> float:
        begin = time.perf_counter()
        rest.call(b'{"query": "q", "documents": ["one", "two"]}')
        return time.perf_counter() - begin

    alone = [one() for _ in range(3_000)]
    begin, ended = time.monotonic(), []
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(SLOW)]

    def dribble() -> None:
        left = set(sockets)
        while left:
            for slow in list(left):
                try:
                    slow.send(b"POST /v1/rerank HTTP/1.1\r\nX: "[:1])
                except OSError:
                    left.discard(slow)
                    slow.close()
            time.sleep(0.2)
        ended.append(time.monotonic() - begin)

    thread = threading.Thread(target=dribble)
    thread.start()
    beside = [one() for _ in range(3_000)]
    while thread.is_alive():
        beside.append(one())
    return ninety_ninth(alone), ninety_ninth(beside), ended[0]


def cpu(pid: int) -> float:
    """Reads how many seconds of a core a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ninety_ninth(seconds: list[float]) -> float:
    """Takes the 99th percentile."""
    return sorted(seconds)[int(len(seconds) * 0.99)]


def main() -> None:
    """Measures and prints."""
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with process(server) as (grpc_port, server_pid), process(rest_server, grpc_port) as (port, rest_pid):
        for documents in (1, 100):
            over_rest, over_grpc = latency(port, grpc_port, documents)
            rest_ms, grpc_ms = (statistics.median(times) * 1000 for times in (over_rest, over_grpc))
            print(
                f"{documents} documents: p50 REST {rest_ms:.2f} ms, gRPC {grpc_ms:.2f} ms, "
                f"more {rest_ms - grpc_ms:.2f} ms, ratio {rest_ms / grpc_ms:.2f}"
            )
        before = cpu(server_pid), cpu(rest_pid)
        per_second = rate(port)
        used = [(cpu(pid) - old) * 1000 for pid, old in zip((server_pid, rest_pid), before, strict=True)]
        calls = per_second * (SECONDS + 0.5)
        print(
            f"{CALLERS} callers: {per_second:.0f} small calls per second; "
            f"CPU a call: server {used[0] / calls:.2f} ms, REST {used[1] / calls:.2f} ms"
        )
        alone, beside, seconds = beside_slow_callers(port)
        print(
            f"beside {SLOW} slow callers: p99 {alone * 1000:.2f} -> {beside * 1000:.2f} ms "
            f"({beside / alone:.2f} x); their sockets are closed after {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
