"""Bodies of several queries by callers with a rate: charged once, or refused before anything is scored."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from rerank_grpc.access.rates import Rates
from rerank_grpc.cli.serve import rest_beside
from rerank_grpc.config.settings import RestSettings
from rerank_grpc.rest.connect.stream import STREAM_PATH
from rerank_grpc.server.server import RerankServer
from rerank_grpc.telemetry.ids import CHARGE_KEY, PROCESS_ID, PROCESS_KEY
from rerank_grpc.telemetry.records import CallRecord
from tests.rest.support import Reply, call, enveloped, opened, post, rest_server
from tests.server.test_rates import metadata_of, refused, settings_of
from tests.support import CountingRunner, HeldRunner, request_of, serving, stub_of, wait_for

CALLERS = """
[shop]
token = "shop-canary"
documents_per_second = 2
burst = 6
[words]
token = "words-canary"
tokens_per_second = 2
burst = 6
[free]
token = "free-canary"
"""
# Where each pair has a query of its own, and where two queries share six documents.
PAIRS = {"text_1": [f"q{n}" for n in range(10)], "text_2": [f"d{n}" for n in range(10)]}
TWO = {"text_1": list("pqpqpq"), "text_2": list("abcdef")}
ONE = {"query": "q", "documents": list("abcdef")}
CONNECT = "/rerank.v1.RerankService/Rerank"
TYPED = {"query": "q", "documents": [{"text": each} for each in "abcdef"]}


class Clock:
    """The clock of the rates, which stands."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Service:
    """A server with REST beside it, the clock of its rates, and the records of its gRPC calls."""

    def __init__(self, server: RerankServer, port: int, records: list[CallRecord]) -> None:
        self.server, self.port, self.records, self.clock = server, port, records, Clock()
        server.reranker.rates = Rates(self.clock)

    def score(self, body: object = PAIRS, name: str = "shop", path: str = "/score", **headers: str) -> Reply:
        bearer = {"authorization": f"Bearer {name}-canary", "content-type": "application/json"}
        return call(self.port, "POST", path, body, {**bearer, **headers})


@contextmanager
def beside(runner: CountingRunner, **settings: Any) -> Iterator[Service]:
    records: list[CallRecord] = []
    own = replace(settings_of(CALLERS), rest=RestSettings(port=0), **settings)
    with serving(own, runner=runner, sinks=[records.append]) as server:
        rest = rest_beside(server)
        assert rest is not None
        rest.start()
        try:
            yield Service(server, rest.port, records)
        finally:
            rest.stop(5)


def seconds_of(reply: Reply) -> tuple[int, str]:
    """Finds when a refusal says to come back: in its header, and in its text."""
    assert reply.status == 429
    return int(reply.headers["retry-after"]), reply.raw.decode().partition("retry in ")[2].partition(" s")[0]


def test_a_body_of_more_pairs_than_the_burst_is_served_and_the_next_one_is_told_the_time():
    runner = CountingRunner()
    with beside(runner) as service:
        assert len(service.score().json["data"]) == 10
        assert runner.sequences == 10
        # 4 documents of debt, and a full balance of 6, at 2 a second.
        assert seconds_of(service.score()) == (5, "5")
        service.clock.now += 4.9
        assert seconds_of(service.score()) == (1, "0.1")
        assert runner.sequences == 10
        service.clock.now += 0.1
        assert service.score().status == 200


def test_nothing_is_scored_or_charged_for_a_body_that_is_refused():
    runner = CountingRunner()
    with beside(runner) as service:
        assert service.score(ONE, path="/v1/rerank").status == 200
        before, calls = runner.sequences, len(service.records)
        for _ in range(20):
            assert seconds_of(service.score()) == (3, "3")
        assert runner.sequences == before
        wait_for(lambda: len(service.records) == calls + 20)  # one call of each: the others are not made
        service.clock.now += 3
        assert service.score().status == 200


def test_a_body_costs_as_many_documents_as_one_query_of_them():
    with beside(CountingRunner()) as service:
        assert service.score(TWO).status == 200
        assert seconds_of(service.score({"query": "q", "documents": ["a"]}, path="/v1/rerank"))[1] == "0.5"


def test_a_rate_of_tokens_lets_a_whole_body_in_which_then_leaves_a_debt():
    runner = CountingRunner()
    with beside(runner) as service:
        reply = service.score(name="words")
        assert reply.status == 200
        tokens = reply.json["usage"]["total_tokens"]
        before = runner.sequences
        assert seconds_of(service.score(name="words"))[1] == f"{(tokens - 6) / 2:g}"
        assert runner.sequences == before


@pytest.mark.parametrize(
    ("wrong", "status", "named"),
    [
        ({"text_1": [*"pqrst", " "], "text_2": list("abcdef")}, 400, b"text_1[5]"),
        ({"text_1": list("pqrstu"), "text_2": [*"abcde", "f" * 100_001]}, 400, b"text_2[5]"),
        (
            {"text_1": ["p", *"q" * 90], "text_2": ["a", *["\N{PANDA FACE}" * 25_000] * 90]},
            413,
            b"bytes of text",
        ),
    ],
    ids=["a blank query", "a long document", "a large request"],
)
def test_a_body_with_a_wrong_query_costs_nothing(wrong: object, status: int, named: bytes):
    runner = CountingRunner()
    with beside(runner) as service:
        reply = service.score(json.dumps(wrong, ensure_ascii=False).encode())
        assert reply.status == status
        assert named in reply.raw
        assert runner.sequences == 0
        assert service.score(TWO).status == 200


def test_a_body_that_finds_the_server_full_costs_nothing():
    runner = HeldRunner()
    with beside(runner, max_calls=1) as service, stub_of(service.server.port) as stub:
        inside = stub.Rerank.future(request_of("q", "a"), metadata=metadata_of("free"))
        wait_for(lambda: service.server.reranker.gate.calls == 1)
        for _ in range(5):
            assert b"too many calls" in service.score().raw
        runner.let_all()
        inside.result()
        wait_for(lambda: service.server.reranker.gate.calls == 0)
        assert service.score(ONE, path="/v1/rerank").status == 200


def test_a_stream_costs_as_many_documents_as_one_reply_and_its_end_tells_the_time():
    runner = CountingRunner()
    with beside(runner) as service:
        body = enveloped(json.dumps(TYPED).encode())
        streaming = {"content-type": "application/connect+json"}
        assert opened(service.score(body, path=STREAM_PATH, **streaming).raw)[1] == {}
        assert runner.sequences == 6
        messages, end = opened(service.score(body, path=STREAM_PATH, **streaming).raw)
        assert (messages, end["error"]["code"]) == ([], "resource_exhausted")
        assert end["metadata"] == {"retry-after": ["3"]}
        assert runner.sequences == 6


def test_the_queries_of_a_caller_without_a_rate_are_under_way_at_once():
    runner = HeldRunner()
    with beside(runner) as service:
        service.server.reranker.rates = Rates()
        bodies: list[Reply] = []

        asking = threading.Thread(target=lambda: bodies.append(service.score(name="free")))
        asking.start()
        wait_for(lambda: service.server.reranker.gate.calls == 8)
        runner.let_all()
        asking.join()
        assert bodies[0].status == 200


FORGED = [
    {CHARGE_KEY: "0"},
    {CHARGE_KEY: "0", PROCESS_KEY: "0" * 32},
    {CHARGE_KEY: "0", PROCESS_KEY: ""},
    {CHARGE_KEY: "0", PROCESS_KEY: PROCESS_ID[:-1]},
    {CHARGE_KEY: "0", PROCESS_KEY: PROCESS_ID + "0"},
    {CHARGE_KEY: "0", PROCESS_KEY: PROCESS_ID.upper() + "\N{LATIN SMALL LETTER E WITH ACUTE}"},
]


@pytest.mark.parametrize("forged", FORGED[:5])
def test_what_a_grpc_caller_says_of_its_charge_counts_for_nothing(forged: dict[str, str]):
    with beside(CountingRunner()) as service, stub_of(service.server.port) as stub:
        metadata = (*metadata_of("shop"), *forged.items())
        stub.Rerank(request_of("q", *"abcdef"), metadata=metadata)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Rerank(request_of("q", "a"), metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        refused(stub.Rerank, request_of("q", "a"))


@pytest.mark.parametrize("forged", [*FORGED, {CHARGE_KEY: "0", PROCESS_KEY: PROCESS_ID}])
@pytest.mark.parametrize(("path", "body"), [("/v1/rerank", ONE), (CONNECT, TYPED), ("/score", TWO)])
def test_what_a_rest_caller_says_of_its_charge_counts_for_nothing(
    path: str, body: object, forged: dict[str, str]
):
    with beside(CountingRunner()) as service:
        assert service.score(body, path=path, **forged).status == 200
        assert service.score(body, path=path, **forged).status == 429


def test_rest_alone_has_its_servers_charge_query_by_query():
    with beside(CountingRunner()) as service, rest_server(service.server.port) as alone:
        bearer = {"authorization": "Bearer shop-canary"}
        assert post(alone, "/score", TWO, **bearer).status == 200
        service.clock.now += 3
        assert seconds_of(post(alone, "/score", PAIRS, **bearer))[1] == "0.5"
