"""Faults and hiccups: pauses, hangs, logs that nobody reads, models that come and go, and the end."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.attacks import probes, storms
from benchmarks.attacks.probes import Figure, probe, texts
from benchmarks.attacks.service import Service
from benchmarks.attacks.storms import RERANK, storm
from benchmarks.attacks.strangers import CHECK, STREAMS, WATCH, start
from rerank_grpc.client import ModelLoading
from tests.http2 import raw_connections

HANG_SECONDS, GRACE_SECONDS = 3.0, 3.0
LAZY_MODELS = ("first", "second")
# The command itself; after SIGUSR1, the next pass of a model never ends.
HANGS = """
import signal, sys, threading
from rerank_grpc.cli import main
from rerank_grpc.runner.runner import CpuRunner

run, hangs = CpuRunner._run, threading.Event()

def run_or_hang(runner, sequences):
    if hangs.is_set():
        threading.Event().wait()
    return run(runner, sequences)

CpuRunner._run = run_or_hang
signal.signal(signal.SIGUSR1, lambda *_: hangs.set())
sys.exit(main())
"""


def pause(service: Service) -> list[Figure]:
    """Stops the process, in the middle of a call, for twice as long as a pass may take."""
    with probes.client(service.port, 60) as caller, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(caller.rerank, "a query", texts(60, 250))
        time.sleep(0.3)
        service.pause(2 * HANG_SECONDS)
        answered = 1 - len(probe(lambda: answer.result(60), 1).errors)
    seconds, _ = probes.until_answered(lambda: probes.rerank(service.port))
    return [probes.all_of("paused calls answered", answered, 1), probes.within("next call", seconds, 2)]


def hang(service: Service) -> list[Figure]:
    """Has the model's next pass never end."""
    service.send(signal.SIGUSR1)
    time.sleep(0.5)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(probe, lambda: probes.rerank(service.port, timeout=30), 1)
        seconds, status = service.wait(60)
        failed = len(call.result().errors)
    return [
        probes.within("ended", seconds, HANG_SECONDS + 5),
        probes.all_of(f"with status {os.EX_SOFTWARE}", int(status == os.EX_SOFTWARE), 1),
        probes.all_of("calls told", failed, 1),
    ]


def loading(service: Service) -> list[Figure]:
    """Calls a model that is loading, ten times at once, with less time than that takes."""
    patience = [0.4, 0.6, 0.8, 1.2, 1.6]

    def by_client(seconds: float) -> bool:
        with probes.client(service.port, seconds, retries=3) as caller:
            errors = probe(lambda: caller.rerank("a query", texts(1, 5), "slow"), 1).errors
        return any(isinstance(error, ModelLoading) for error in errors)

    def by_rest(seconds: float) -> bool:
        body = {"model": "slow", "query": "a query", "documents": texts(1, 5)}
        headers = {"X_Request_Timeout": str(seconds)}
        errors = probe(lambda: probes.rest(service.rest_port, "/v1/rerank", body, **headers), 1).errors
        return any(isinstance(error, probes.Refused) for error in errors)

    with ThreadPoolExecutor(10) as pool:
        told = pool.map(by_client, patience), pool.map(by_rest, patience)
        clients, rest = (sum(each) for each in told)
    return [
        probes.all_of("clients are told ModelLoading", clients, 5),
        probes.all_of("REST callers 503 with Retry-After", rest, 5),
    ]


def thrash(service: Service) -> list[Figure]:
    """Calls two lazy models in turn, where memory is enough for one of them beside the default."""
    with storm(storms.models_in_turn, service.port, LAZY_MODELS):
        found = probe(lambda: probes.rerank(service.port), 1_000, seconds=20)
    evictions = service.log.count(b"makes room for")
    note = f", {evictions} evictions"
    return [probes.at_most(f"failed of {len(found.seconds)} calls", len(found.errors), 0, note=note)]


def unload_loop(service: Service) -> list[Figure]:
    """Has the default model unloaded again and again, from the admin port."""
    with storm(storms.unloads, service.admin_port):
        found = probe(lambda: probes.rerank(service.port, timeout=30), 1_000, seconds=10)
    loads = service.log.count(b"model embedded is ready after")
    note = f", {loads} loads; slowest {probes.duration(found.slowest)}"
    return [probes.at_most(f"failed of {len(found.seconds)} calls", len(found.errors), 0, note=note)]


def deaf_log(service: Service) -> list[Figure]:
    """Reads the log no more, sends garbage to the REST port, and then SIGTERM."""
    service.stop_reading()
    with storm(storms.garbage, service.rest_port):
        time.sleep(1)
        found = probe(lambda: probes.rest(service.rest_port))
    return [
        probes.at_most("failed of 20 /health", len(found.errors), 0),
        probes.ended("SIGTERM", *service.terminate(), GRACE_SECONDS + 2),
    ]


def end_beside_body(service: Service) -> list[Figure]:
    """Sends SIGTERM while one Check has no body."""
    with raw_connections(service.port, 1) as connections:
        start(connections, 1, CHECK)
        time.sleep(0.5)
        return [probes.ended("SIGTERM", *service.terminate(), 2)]


def end_beside_all(service: Service) -> list[Figure]:
    """Sends SIGTERM beside stalled watches, calls without a body, and a log that nobody reads."""
    service.stop_reading()
    with (
        raw_connections(service.port, 1, window=0) as watchers,
        raw_connections(service.port, 2) as others,
        raw_connections(service.admin_port, 1) as admin,
    ):
        start(watchers, STREAMS, WATCH, b"")
        start(others, STREAMS // 2, CHECK)
        start(others, STREAMS // 2, RERANK)
        start(admin, 16, CHECK)
        time.sleep(1)
        return [probes.ended("SIGTERM", *service.terminate(), GRACE_SECONDS + 2)]
