"""Calls a server from outside: one after the other, as fast as it answers, or at times fixed beforehand."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Thread
from time import perf_counter, sleep

import grpc

from benchmarks.servers import METADATA
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc

OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, slots=True)
class Answer:
    """One call: seconds from when it was due until it was answered, and what it was answered with."""

    seconds: float
    tokenization: float
    tokens: int
    code: str = "OK"


class Caller:
    """A client with a connection of its own, over TLS where a CA is given."""

    def __init__(self, target: str, ca: bytes | None = None) -> None:
        if ca is None:
            self._channel = grpc.insecure_channel(target, options=OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(ca), options=OPTIONS)
        self._stub = rerank_pb2_grpc.RerankServiceStub(self._channel)

    def call(self, request: pb.RerankRequest, due: float | None = None) -> Answer:
        """Calls now; `due` is when it should have been, so that waiting for a thread counts."""
        due = perf_counter() if due is None else due
        try:
            reply = self._stub.Rerank(request, metadata=METADATA, timeout=120)
        except grpc.RpcError as error:
            return Answer(perf_counter() - due, 0, 0, error.code().name)
        usage = reply.usage
        seconds = perf_counter() - due
        return Answer(seconds, usage.tokenization_duration.ToNanoseconds() / 1e9, usage.input_tokens)

    def health(self) -> pb.HealthResponse:
        reply: pb.HealthResponse = self._stub.Health(pb.HealthRequest(), metadata=METADATA)
        return reply

    def close(self) -> None:
        self._channel.close()


def request_of(query: str, documents: Sequence[str]) -> pb.RerankRequest:
    return pb.RerankRequest(query=query, documents=[pb.Document(text=text) for text in documents])


def one_by_one(target: str, requests: Sequence[pb.RerankRequest], count: int) -> list[Answer]:
    """Calls one after the other, the requests in turn."""
    caller = Caller(target)
    answers = [caller.call(requests[turn % len(requests)]) for turn in range(count)]
    caller.close()
    return answers


def closed_loop(
    target: str,
    requests: Sequence[pb.RerankRequest],
    callers: int,
    seconds: float,
    *,
    ca: bytes | None = None,
) -> tuple[list[Answer], float]:
    """Every caller calls again as soon as it is answered; returns the answers and the seconds they took."""
    started = perf_counter()

    def run(number: int) -> list[Answer]:
        caller, answers, turn = Caller(target, ca), [], number
        while perf_counter() - started < seconds:
            answers.append(caller.call(requests[turn % len(requests)]))
            turn += callers
        caller.close()
        return answers

    with ThreadPoolExecutor(callers) as pool:
        answers = [answer for each in pool.map(run, range(callers)) for answer in each]
    return answers, perf_counter() - started


def open_loop(
    target: str, requests: Sequence[pb.RerankRequest], calls_per_second: float, seconds: float
) -> list[Answer]:
    """Calls at Poisson times fixed beforehand, whether or not earlier calls have been answered."""
    chance = random.Random(5)
    times, at = [], 0.0
    while (at := at + chance.expovariate(calls_per_second)) < seconds:
        times.append(at)
    caller = Caller(target)
    started = perf_counter()
    with ThreadPoolExecutor(128) as pool:
        waiting = []
        for turn, at in enumerate(times):
            sleep(max(0.0, started + at - perf_counter()))
            waiting.append(pool.submit(caller.call, requests[turn % len(requests)], started + at))
        answers = [future.result() for future in waiting]
    caller.close()
    return answers


def beside(background: Callable[[], object], foreground: Callable[[], list[Answer]]) -> list[Answer]:
    """Repeats `foreground` while `background` runs once."""
    over, answers = Event(), list[Answer]()

    def run() -> None:
        background()
        over.set()

    thread = Thread(target=run)
    thread.start()
    while not over.is_set():
        answers += foreground()
    thread.join()
    return answers


def percentile(answers: Sequence[Answer], share: float) -> float:
    """The seconds within which that share of the calls was answered."""
    seconds = sorted(answer.seconds for answer in answers)
    return seconds[min(len(seconds) - 1, int(share * len(seconds)))]
