"""What bystanders do during an attack, how long that takes, and what is asked of it."""

from __future__ import annotations

import http.client
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2

from rerank_grpc.client import Client, QueueFull, RerankError
from tests.stubs import HealthStub

TIMEOUT_SECONDS = 5.0
MESSAGE_BYTES = 16 << 20
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
)
BYSTANDERS_PRIORITY = -10
FAILURES = (grpc.RpcError, RerankError, OSError, http.client.HTTPException)
_turn = itertools.count()


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that is asked of the service under attack, and what was measured."""

    asked: str
    measured: str
    value: float
    met: bool


@dataclass(slots=True)
class Probes:
    """The seconds that each of some probes took, and the errors of those that failed."""

    seconds: list[float] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    @property
    def slowest(self) -> float:
        return max(self.seconds, default=math.inf)

    @property
    def p99(self) -> float:
        return sorted(self.seconds)[int(0.99 * len(self.seconds))] if self.seconds else math.inf

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else math.inf


def probe(ask: Callable[[], object], count: int = 20, *, pause: float = 0.05, seconds: float = 30) -> Probes:
    """Asks so many times, or for so many seconds where that is less."""
    found, end = Probes(), time.monotonic() + seconds
    with going_first():
        while len(found.seconds) < count and time.monotonic() < end:
            started = time.monotonic()
            try:
                ask()
            except FAILURES as error:
                found.errors.append(error)
            found.seconds.append(time.monotonic() - started)
            time.sleep(pause)
    return found


@contextmanager
def going_first() -> Iterator[None]:
    """Gives this thread the CPU before others where that is allowed: a bystander has a machine of its own."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, BYSTANDERS_PRIORITY)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)


def refusals(ask: Callable[[], object], count: int = 20, seconds: float = 15) -> Probes:
    """Asks until so many were refused for want of room; what is let in does not count."""
    found, end = Probes(), time.monotonic() + seconds
    while len(found.seconds) < count and time.monotonic() < end:
        each = probe(ask, 1)
        if any(isinstance(error, QueueFull | Refused) for error in each.errors):
            found.seconds += each.seconds
            found.errors += each.errors
    return found


def until_answered(ask: Callable[[], object], seconds: float = 30) -> tuple[float, list[Exception]]:
    """Asks until an answer comes; returns the seconds that took, and the errors that came before it."""
    started, errors = time.monotonic(), list[Exception]()
    while time.monotonic() - started < seconds:
        if not (failed := probe(ask, 1, pause=0.1).errors):
            return time.monotonic() - started, errors
        errors += failed
    return math.inf, errors


# What is asked


def check(port: int) -> None:
    """Asks grpc.health.v1 over a connection of its own, as a probe does."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        answer = HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise OSError("not serving")


def client(port: int, timeout: float = TIMEOUT_SECONDS, retries: int = 0) -> Client:
    """Makes a client with a connection of its own."""
    return Client(f"127.0.0.1:{port}", timeout=timeout, retries=retries, options=OPTIONS)


def rerank(port: int, model: str = "", timeout: float = TIMEOUT_SECONDS) -> None:
    """Reranks two documents that the service has not seen, over a connection of its own."""
    with client(port, timeout) as caller:
        caller.rerank("a query", texts(2, 5), model)


def health(port: int) -> None:
    """Asks rerank.v1's Health, over a connection of its own."""
    with client(port) as caller:
        caller.health()


class Refused(OSError):
    """A REST call that was refused for want of room, and told after how many seconds to come again."""

    def __init__(self, status: int, retry_after: float) -> None:
        super().__init__(f"status {status}")
        self.retry_after = retry_after


def rest(port: int, path: str = "/health", body: Mapping[str, object] | None = None, **headers: str) -> int:
    """Makes one REST call; raises Refused, or OSError for what else is no success."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    try:
        data = None if body is None else json.dumps(body)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, data, names)
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    if answer.status in (429, 503, 504) and (told := answer.getheader("Retry-After")):
        raise Refused(answer.status, float(told))
    if answer.status != 200:
        raise OSError(f"status {answer.status}")
    return answer.status


def texts(count: int, words: int) -> list[str]:
    """Makes documents of so many tokens or a few more, none of which the service has seen."""
    key = f"{time.monotonic_ns():x} {next(_turn)}"
    return [f"{key} {number} " + "word " * words for number in range(count)]


# What is asked of the figures


def latency(name: str, quiet: Probes, beside: Probes, most: float) -> Figure:
    """The slowest of some probes, none of which may fail, beside the slowest of those before."""
    asked = f"{name} ≤ {duration(most)}, none fails"
    measured = f"{name} {duration(beside.slowest)} (quiet {duration(quiet.slowest)})"
    measured += f", {len(beside.errors)} of {len(beside.seconds)} failed"
    return Figure(asked, measured, beside.slowest, beside.slowest <= most and not beside.errors)


def within(name: str, seconds: float, most: float, note: str = "") -> Figure:
    """A time that has a bound."""
    return Figure(f"{name} ≤ {duration(most)}", f"{name} {duration(seconds)}{note}", seconds, seconds <= most)


def at_most(name: str, value: float, most: float, unit: str = "", note: str = "") -> Figure:
    """A number that has a bound."""
    return Figure(f"{name} ≤ {most:,g}{unit}", f"{name} {number(value)}{unit}{note}", value, value <= most)


def at_least(name: str, value: float, least: float, unit: str = "") -> Figure:
    """The same the other way round."""
    return Figure(f"{name} ≥ {least:g}{unit}", f"{name} {number(value)}{unit}", value, value >= least)


def ended(name: str, seconds: float, status: int, most: float) -> Figure:
    """The time in which the process has ended as asked."""
    asked, measured = f"{name} ≤ {duration(most)}, status 0", f"{name} {duration(seconds)}, status {status}"
    return Figure(asked, measured, seconds, seconds <= most and status == 0)


def near(name: str, ratio: float, factor: float) -> Figure:
    """A ratio that is to be near 1."""
    asked = f"{name} within a factor of {factor:g}"
    return Figure(asked, f"{name} {ratio:.2f}", ratio, 1 / factor <= ratio <= factor)


def all_of(name: str, found: int, count: int) -> Figure:
    """A count that has to be all."""
    return Figure(f"{count} of {count} {name}", f"{found} of {count} {name}", found, found == count)


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"
