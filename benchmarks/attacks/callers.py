"""Overload by callers that are let in: too many, too large, too short, and those that leave."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.attacks import probes, storms
from benchmarks.attacks.probes import Figure, latency, probe, texts
from benchmarks.attacks.service import Service
from benchmarks.attacks.storms import storm

# Of the embedded model, in tokens: a document of this many words is as long as any.
FULL_WORDS = 250
# A document in a RerankRequest, as protobuf writes it: without a text, and with the text "a".
NO_TEXT, A_DOCUMENT = b"\x1a\x00", b"\x1a\x03\x0a\x01a"
FOUR_MODELS = ("embedded", "second", "third", "fourth")


def freeze(service: Service) -> list[Figure]:
    """Stops the process for 8 s in the middle of one-document calls."""
    with storm(storms.callers, service.port, 1, 1, 2):
        time.sleep(2)
        service.pause(8)
        time.sleep(0.05)
    with probes.client(service.port, 8) as caller:
        refused = probe(lambda: caller.rerank("a query", texts(10, 40)), 119, pause=0, seconds=40)
    told, _ = rate_told(service, 2)
    count = len(refused.seconds)
    return [probes.at_most(f"refused of {count} calls of 10 documents", len(refused.errors), 0), told]


def small_calls(service: Service) -> list[Figure]:
    """Makes 1,000 one-document calls, then large ones whose deadline is twice what they take."""
    with probes.client(service.port) as caller, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: caller.rerank("a query", texts(1, 2)), range(1_000)))
    told, seconds = rate_told(service, 1.5)
    refused = probe(lambda: large_call(service, 2 * seconds), 3).errors
    return [told, probes.at_most("refused of 3 large ones with twice their time", len(refused), 0)]


def one_long(service: Service) -> list[Figure]:
    """Adds one long document to 900 short ones, on a model that pads."""
    with probes.client(service.port, 60) as caller:

        def seconds(*more: str) -> float:
            documents = [*texts(900, 0), *more]
            started = time.monotonic()
            caller.rerank("a query", documents)
            return time.monotonic() - started

        seconds()
        short = min(seconds() for _ in range(3))
        mixed = min(seconds(*texts(1, 500)) for _ in range(3))
    note = f" ({probes.duration(mixed)} and {probes.duration(short)})"
    return [probes.at_most("901 documents ÷ 900 short ones", mixed / short, 1.3, note=note)]


def four_models(service: Service) -> list[Figure]:
    """Keeps 96 callers busy on each of four models."""
    quiet = probe(lambda: probes.health(service.port))
    with storm(storms.callers, service.port, 4 * 96, 4, 100, FOUR_MODELS):
        time.sleep(2)
        beside = probe(lambda: probes.health(service.port))
        refused = probes.refusals(lambda: probes.rerank(service.port, timeout=1))
    return [latency("Health", quiet, beside, 0.1), refusal("refusal", refused)]


def rest_flood(service: Service) -> list[Figure]:
    """Keeps 200 REST callers busy."""
    body = {"query": "a query", "documents": ["a document"]}
    quiet = probe(lambda: probes.rest(service.rest_port))
    with storm(storms.rest_callers, service.rest_port, 200, 4, 100):
        time.sleep(2)
        beside = probe(lambda: probes.rest(service.rest_port))
        refused = probes.refusals(
            lambda: probes.rest(service.rest_port, "/v1/rerank", body, X_Request_Timeout="1")
        )
    return [latency("/health", quiet, beside, 0.1), refusal("refusal with Retry-After", refused)]


def cancel_storm(service: Service) -> list[Figure]:
    """Sends 6.8 MiB calls for 8 s, and cancels each after 150 ms."""
    ask = lambda: probes.rerank(service.port)  # noqa: E731
    quiet, before = probe(ask), service.memory()
    service.forget_peak()
    with storm(storms.cancellations, service.target, 4, 0.15) as attack:
        beside = probe(ask, 1_000, seconds=8)
    back, _ = probes.until_answered(ask)
    note = f" in {attack.steps} calls"
    return [
        probes.at_most("memory", service.peak() - before, 400, " MiB", note),
        latency("others", quiet, beside, 1),
        probes.within("back after", back, 2),
    ]


def empty_documents(service: Service) -> list[Figure]:
    """Sends 4 million empty documents, in 8 MB, from 4 callers at once."""
    with probes.client(service.port) as caller:
        ask = lambda: caller.rerank("a query", texts(1, 2))  # noqa: E731
        quiet = probe(ask, 100, pause=0.01)
        with storm(storms.messages, service.target, 4, NO_TEXT, 4_000_000, pause=0.1) as attack:
            time.sleep(1)
            beside = probe(ask, 200, pause=0.01)
    note = f" (quiet {probes.duration(quiet.p99)}) beside {attack.steps} messages"
    return [
        probes.within("p99 of others", beside.p99, 0.1, note),
        probes.at_most("failed of others", len(beside.errors), 0),
    ]


def short_deadlines(service: Service) -> list[Figure]:
    """Calls with 1 ms to go, from 4 callers at once."""
    with probes.client(service.port) as caller:
        ask = lambda: caller.rerank("a query", texts(1, 2))  # noqa: E731
        quiet = probe(ask, 100, pause=0.01)
        with storm(storms.messages, service.target, 4, A_DOCUMENT, 1, timeout=0.001, pause=0.01) as attack:
            beside = probe(ask, 200, pause=0.01)
    note = f" (quiet {probes.duration(quiet.median)}) beside {attack.steps:,} calls"
    return [
        probes.within("p50 of others", beside.median, 0.1, note),
        probes.at_most("failed of others", len(beside.errors), 0),
    ]


# What they are made of


def rate_told(service: Service, factor: float) -> tuple[Figure, float]:
    """Compares the rate that Health tells with that of a large call; returns the call's seconds too."""
    with probes.client(service.port) as caller:
        rate = caller.health().tokens_per_second
    started = time.monotonic()
    tokens = large_call(service, 60)
    seconds = time.monotonic() - started
    return probes.near("rate told ÷ measured", rate * seconds / tokens, factor), seconds


def large_call(service: Service, timeout: float) -> int:
    """Reranks 60 documents of full length; returns the tokens."""
    with probes.client(service.port, timeout) as caller:
        return caller.rerank("a query", texts(60, FULL_WORDS)).summary.usage.input_tokens


def refusal(name: str, refused: probes.Probes) -> Figure:
    """How long a caller is kept for whom there is no room."""
    return probes.within(name, refused.median, 0.05, f", median of {len(refused.seconds)}")
