"""Attackers that keep at it, in processes of their own: their GIL must not slow the bystanders' clock."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from benchmarks.attacks.probes import FAILURES, OPTIONS, Refused, client, rest, texts
from rerank_grpc.client import QueueFull
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.stubs import HealthStub

RERANK = "/rerank.v1.RerankService/Rerank"
# As many calls as the server lets one connection have under way.
CALLERS_PER_CONNECTION = 96
START_SECONDS = 60.0
# How long a caller waits after a failure that does not say.
PAUSE_SECONDS = 0.1
# Attackers have machines of their own; here they get what the server and the bystanders leave.
NICENESS = 10
# What a thread of an attack does again and again.
Step = Callable[[], object]


class Storm:
    """An attack in progress."""

    def __init__(self, steps: Synchronized[int]) -> None:
        self._steps = steps

    @property
    def steps(self) -> int:
        """How many steps its threads have made so far."""
        return self._steps.value


@contextmanager
def storm(attack: Callable[..., Sequence[Step]], *arguments: Any, **options: Any) -> Iterator[Storm]:
    """Runs an attack in a process of its own while a `with` statement runs, each step in a thread."""
    context = multiprocessing.get_context("spawn")
    begun, over, steps = context.Event(), context.Event(), context.Value("q", 0)
    process = context.Process(
        target=_run, args=(partial(attack, *arguments, **options), begun, over, steps), daemon=True
    )
    process.start()
    try:
        if not begun.wait(START_SECONDS):
            raise TimeoutError(f"{attack.__name__} did not begin")
        yield Storm(steps)
    finally:
        over.set()
        process.join(5)
        process.kill()
        process.join()


def _run(attack: Callable[[], Sequence[Step]], begun: Event, over: Event, steps: Synchronized[int]) -> None:
    os.nice(NICENESS)

    def repeat(step: Step) -> None:
        while True:
            step()
            with steps.get_lock():
                steps.value += 1

    for step in attack():
        threading.Thread(target=repeat, args=[step], daemon=True).start()
    begun.set()
    over.wait()
    os._exit(0)  # with all connections, and without waiting for calls in progress


# The attacks


def callers(
    port: int, count: int, documents: int, words: int, models: Sequence[str] = ("",)
) -> Sequence[Step]:
    """Callers that rerank again as soon as they are answered; one that is refused waits as it is told."""
    connections = [client(port, timeout=30) for _ in range(-(-count // CALLERS_PER_CONNECTION))]

    def step(number: int) -> None:
        caller = connections[number // CALLERS_PER_CONNECTION]
        try:
            caller.rerank("a query", texts(documents, words), models[number % len(models)])
        except QueueFull as error:
            time.sleep(error.retry_after or 0)
        except FAILURES:
            time.sleep(PAUSE_SECONDS)

    return [partial(step, number) for number in range(count)]


def rest_callers(port: int, count: int, documents: int, words: int) -> Sequence[Step]:
    """The same over REST, each call on a connection of its own."""

    def step() -> None:
        try:
            rest(port, "/v1/rerank", {"query": "a query", "documents": texts(documents, words)})
        except Refused as error:
            time.sleep(error.retry_after)
        except FAILURES:
            time.sleep(PAUSE_SECONDS)

    return [step] * count


def cancellations(target: str, threads: int, patience: float) -> Sequence[Step]:
    """Callers that send 6.8 MiB of documents, and soon leave."""
    documents = [pb.Document(text=f"{number} " + "lorem ipsum dolor " * 440) for number in range(900)]
    message = pb.RerankRequest(query="a query", documents=documents).SerializeToString()

    def step(method: grpc.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
        call = method.future(message, timeout=30)
        time.sleep(patience)
        call.cancel()

    return [partial(step, _method(target)) for _ in range(threads)]


def messages(
    target: str, threads: int, unit: bytes, count: int, *, timeout: float = 10, pause: float = 0
) -> Sequence[Step]:
    """Callers of Rerank that send a message of so many equal parts, and take any answer."""
    message = pb.RerankRequest(query="a query").SerializeToString() + unit * count

    def step(method: grpc.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
        with suppress(grpc.RpcError):
            method(message, timeout=timeout)
        time.sleep(pause)

    return [partial(step, _method(target)) for _ in range(threads)]


def models_in_turn(port: int, models: Sequence[str]) -> Sequence[Step]:
    """One caller that asks one model after the other, so that none may stay in memory."""
    caller, turn = client(port, timeout=10), itertools.cycle(models)

    def step() -> None:
        with suppress(*FAILURES):
            caller.rerank("a query", texts(1, 5), next(turn))

    return [step]


def unloads(admin_port: int) -> Sequence[Step]:
    """Has the default model unloaded again and again."""
    channel = grpc.insecure_channel(f"127.0.0.1:{admin_port}", options=OPTIONS)
    admin, request = rerank_pb2_grpc.ModelAdminServiceStub(channel), pb.UnloadModelRequest(model="embedded")

    def step() -> None:
        with suppress(grpc.RpcError):
            admin.UnloadModel(request, timeout=10)

    return [step]


def garbage(rest_port: int) -> Sequence[Step]:
    """Sends what is no HTTP, each time over a connection of its own."""

    def step() -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", rest_port), timeout=5) as connection:
            connection.sendall(b"no request at all\r\n\r\n")
            connection.recv(1_024)

    return [step]


def nuisances(port: int, rest_port: int) -> Sequence[Step]:
    """Garbage, and calls over REST and gRPC with a token that is wrong."""
    caller = client(port)

    def by_rest() -> None:
        with suppress(*FAILURES):
            rest(rest_port, "/v1/rerank", {}, Authorization="Bearer none")

    def by_grpc() -> None:
        with suppress(*FAILURES):
            caller.rerank("a query", ["a document"])

    return [*garbage(rest_port), by_rest, by_grpc]


def unknown_names(target: str, threads: int) -> Sequence[Step]:
    """Watches services that do not exist, each under another name."""

    def step(stub: HealthStub) -> None:
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=texts(1, 0)[0]))
        next(watch)
        watch.cancel()

    channels = [grpc.insecure_channel(target, options=OPTIONS) for _ in range(threads)]
    return [partial(step, HealthStub(channel)) for channel in channels]


def _method(target: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    """Rerank on a connection of its own, taking and giving bytes."""
    return grpc.insecure_channel(target, options=OPTIONS).unary_unary(RERANK)
