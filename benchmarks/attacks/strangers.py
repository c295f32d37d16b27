"""Attacks that need no token: connections, bodies, watches and texts that nobody reads."""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from benchmarks.attacks import probes, storms
from benchmarks.attacks.probes import Figure, check, latency, probe
from benchmarks.attacks.service import Service
from benchmarks.attacks.storms import RERANK, Storm, storm
from benchmarks.attacks.uploads import Upload
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.http2 import RawConnection, raw_connections
from tests.stubs import HealthStub, ReflectionStub

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
STREAM = "/rerank.v1.RerankService/StreamRerank"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
# As many as one connection may have under way on the main port, and on the admin port.
STREAMS, ADMIN_STREAMS = 96, 16


def stalled_watches(service: Service) -> list[Figure]:
    """Watches health on connections that may receive nothing."""
    quiet = probe(lambda: check(service.port))
    with (
        raw_connections(service.port, 1, window=0) as main,
        raw_connections(service.admin_port, 6, window=0) as admin,
    ):
        start(main, STREAMS, WATCH, b"")
        start(admin, ADMIN_STREAMS, WATCH, b"")
        time.sleep(0.5)
        figures = [
            latency("Check", quiet, probe(lambda: check(service.port)), 0.05),
            latency("Check on the admin port", quiet, probe(lambda: check(service.admin_port)), 0.05),
        ]
        return [*figures, probes.ended("SIGTERM", *service.terminate(), 2)]


def calls_without_body(service: Service) -> list[Figure]:
    """Starts calls and never sends their request, on both ports."""
    quiet, figures = probe(lambda: check(service.port)), []
    for method, name in ((CHECK, "Checks"), (RERANK, "Reranks")):
        with (
            raw_connections(service.port, 8) as main,
            raw_connections(service.admin_port, 8) as admin,
        ):
            start(main, STREAMS, method)
            start(admin, STREAMS, CHECK)
            first, _ = probes.until_answered(lambda: check(service.port))
            answered, _ = probes.until_answered(lambda: probes.rerank(service.port))
            time.sleep(1)
            figures += [
                probes.within("first Check, right behind them", first, 1),
                latency(f"Check beside {name}", quiet, probe(lambda: check(service.port)), 0.05),
                latency("Check on the admin port", quiet, probe(lambda: check(service.admin_port)), 0.05),
                probes.within("first Rerank", answered, 2),
            ]
    return figures


def unfinished_bodies(service: Service) -> list[Figure]:
    """Sends all but the end of 40 requests of 8 MiB to Check."""
    before, body = service.memory(), memoryview(bytes((8 << 20) - 100))
    service.forget_peak()

    def upload(_: int) -> None:
        with closing(Upload(service.port, CHECK, 8 << 20)) as connection, suppress(OSError):
            connection.send_message(body)
            connection.wait_for_end()

    started = time.monotonic()
    with ThreadPoolExecutor(40) as pool:
        list(pool.map(upload, range(40)))
    seconds = time.monotonic() - started
    return [
        probes.at_most("memory", service.peak() - before, 130, " MiB"),
        probes.within("the last is ended", seconds, 10),
    ]


def stalled_streams(service: Service) -> list[Figure]:
    """Calls StreamRerank and reads nothing, with as many calls as the service lets in, and twice as many."""
    request = pb.StreamRerankRequest(query="q", documents=[pb.Document(text="a b c")]).SerializeToString()
    quiet, figures, waits = probe(lambda: probes.rerank(service.port)), list[Figure](), list[float]()
    for count in (1, 2):
        with raw_connections(service.port, count, window=0) as connections:
            start(connections, STREAMS, STREAM, request)
            time.sleep(0.5)
            seconds, errors = probes.until_answered(lambda: probes.rerank(service.port))
            beside = probe(lambda: probes.rerank(service.port))
            waits += [wait for error in errors if (wait := getattr(error, "retry_after", None)) is not None]
        figures.append(probes.within(f"first Rerank beside {count * STREAMS}", seconds, 15))
        figures.append(latency("and 20 more", quiet, beside, 1))
    if waits:
        figures.append(probes.at_least("retry_after of the refused", min(waits), 0.1, " s"))
    return figures


def unknown_names(service: Service) -> list[Figure]:
    """Watches 20,000 services that do not exist, and 30 whose names have nearly 8 MiB."""
    with storm(storms.unknown_names, service.target, 4) as attack:
        wait_for_steps(attack, 500)  # what the first calls leave behind stays once
        before = service.memory()
        steps = wait_for_steps(attack, 20_000)
    unknown = service.memory()
    with grpc.insecure_channel(service.target, options=probes.OPTIONS) as channel:
        for number in range(30):
            name = f"{number}" + "x" * ((8 << 20) - 1_000)
            with suppress(grpc.RpcError):
                list(HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name)))
    time.sleep(12)
    return [
        probes.at_most("memory after unknown names", unknown - before, 5, " MiB", f" ({steps:,})"),
        probes.at_most("memory 12 s after the long names", service.memory() - unknown, 64, " MiB"),
    ]


def idle_connections(service: Service) -> list[Figure]:
    """Connects 2,000 times to each port and says nothing."""
    quiet = probe(lambda: check(service.port))
    quiet_rest = probe(lambda: probes.rest(service.rest_port))
    written = len(service.log)
    with silent(service.port, 2_000), silent(service.rest_port, 2_000):
        figures = [
            latency("Check", quiet, probe(lambda: check(service.port)), 1),
            latency("/health", quiet_rest, probe(lambda: probes.rest(service.rest_port)), 1),
        ]
    return [*figures, probes.at_most("log", (len(service.log) - written) / 1_000, 10, " KB")]


def unread_scripts(service: Service) -> list[Figure]:
    """Asks 300 times for the largest file of /docs, and reads none."""
    probes.rest(service.rest_port, "/docs/swagger-ui-bundle.js")  # it is read from disk once
    before = service.memory()
    service.forget_peak()
    with silent(service.rest_port, 300) as connections:
        for connection in connections:
            connection.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: here\r\n\r\n")
        time.sleep(2)
        quiet = probe(lambda: probes.rest(service.rest_port))
        grown = service.peak() - before
    return [
        probes.at_most("memory", grown, 50, " MiB"),
        probes.at_most("failed of 20 /health", len(quiet.errors), 0),
    ]


def idle_reflection(service: Service) -> list[Figure]:
    """Opens 192 reflection streams and asks nothing."""
    with raw_connections(service.port, 2) as connections:
        start(connections, STREAMS, REFLECT)
        seconds, _ = probes.until_answered(lambda: reflect(service.port))
    return [probes.within("reflection", seconds, 11)]


def log_flood(service: Service) -> list[Figure]:
    """Sends garbage to the REST port, and calls without a token to both."""
    written, started = len(service.log), time.monotonic()
    with storm(storms.nuisances, service.port, service.rest_port) as attack:
        time.sleep(5)
    seconds = time.monotonic() - started
    lines = service.log[written:].splitlines()
    kinds = Counter(re.sub(rb"\d", b"", line[len("2026-01-01 00:00:00,000 ") :]) for line in lines)
    most = max(kinds.values(), default=0)
    note = f", of {attack.steps:,} requests"
    return [
        probes.at_most("lines a second of a kind", most / seconds, 10, note=note),
        probes.at_most("log", len(b"".join(lines)) / seconds / 1_000, 5, " KB a second"),
    ]


# What they are made of


def start(connections: list[RawConnection], streams: int, method: str, message: bytes | None = None) -> None:
    """Starts so many calls on each of some connections."""
    for connection in connections:
        with suppress(OSError):  # the server has closed it meanwhile
            for _ in range(streams):
                connection.call(method, message)


def wait_for_steps(attack: Storm, count: int, seconds: float = 40) -> int:
    """Waits until an attack has made so many steps, or for so long; returns how many it made."""
    end = time.monotonic() + seconds
    while attack.steps < count and time.monotonic() < end:
        time.sleep(0.05)
    return attack.steps


@contextmanager
def silent(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connects and says nothing."""
    with ExitStack() as opened:
        yield [
            opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            for _ in range(count)
        ]


def reflect(port: int) -> None:
    """Asks reflection for the names of the services."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=probes.OPTIONS) as channel:
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        next(ReflectionStub(channel).ServerReflectionInfo(iter([question]), timeout=2))
