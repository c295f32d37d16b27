"""Callers above their rates, over gRPC and REST; the callers are those of a token file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2

from rerank_grpc.access.entries import Known
from rerank_grpc.access.tokens import TokenFile
from rerank_grpc.client import Client, RateLimited
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.protocols import inference_pb2, tei_pb2
from rerank_grpc.server.server import RerankServer
from rerank_grpc.wire.status import DETAILS_KEY, PUSHBACK_KEY
from tests.rest.support import post, rest_server
from tests.server.test_kserve import inference
from tests.support import CountingRunner, HeldRunner, channel_of, request_of, serving, stub_of, wait_for

Stream: TypeAlias = Callable[..., Any]

# So slow that no test lives to see a document come back.
CALLERS = """
[shop]
token = "shop-canary"
documents_per_second = 0.001
burst = 6
[words]
token = "words-canary"
tokens_per_second = 0.001
burst = 6
[free]
token = "free-canary"
"""


def settings_of(callers: str = CALLERS) -> ServerSettings:
    file = TokenFile.of(Path("nowhere"), callers.encode(), Known())
    return replace(ServerSettings(), token_file=file)


@contextmanager
def limited(runner: CountingRunner | None = None) -> Iterator[RerankServer]:
    with serving(settings_of(), runner=runner or CountingRunner()) as server:
        yield server


def metadata_of(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {name}-canary"),)


def refused(call: Stream, request: object, name: str = "shop") -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, metadata=metadata_of(name), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return caught.value


def test_a_caller_above_its_rate_is_told_whose_it_is_and_when_to_come_back():
    with limited() as server, stub_of(server.port) as stub:
        stub.Rerank(request_of("q", *"abcd"), metadata=metadata_of("shop"))
        error = refused(stub.Rerank, request_of("q", *"abcd"))
        stub.Rerank(request_of("q", *"ab"), metadata=metadata_of("shop"))
        stub.Rerank(request_of("q", *"abcd"), metadata=metadata_of("free"))
    metadata: Any = error.trailing_metadata()
    trailers = dict(metadata)
    status = status_pb2.Status.FromString(trailers[DETAILS_KEY])
    info, retry, quota = details.ErrorInfo(), details.RetryInfo(), details.QuotaFailure()
    for detail, kind in zip(status.details, (info, retry, quota), strict=True):
        assert detail.Unpack(kind)
    assert info.reason == "ERROR_REASON_RATE_LIMITED"
    assert info.metadata["caller"] == quota.violations[0].subject == "shop"
    assert retry.retry_delay.ToTimedelta().total_seconds() == pytest.approx(2_000, abs=100)
    assert trailers[PUSHBACK_KEY] == "-1"  # no attempt is worth its while before the deadline
    assert "canary" not in repr(error.trailing_metadata()) + str(error.details())


def test_a_stream_is_charged_as_a_call_is():
    with limited() as server, stub_of(server.port) as stub:
        list(stub.StreamRerank(request_of("q", *"abcdef"), metadata=metadata_of("shop")))
        refused(stub.Rerank, request_of("q", "a"))


def test_a_call_larger_than_the_burst_is_served_once():
    with limited() as server, stub_of(server.port) as stub:
        stub.Rerank(request_of("q", *"abcdefghij"), metadata=metadata_of("shop"))
        refused(stub.Rerank, request_of("q", "a"))


def test_nothing_is_computed_for_a_refused_call_and_it_costs_its_caller_nothing():
    runner = CountingRunner()
    with limited(runner) as server, stub_of(server.port) as stub:
        stub.Rerank(request_of("q", *"abcde"), metadata=metadata_of("shop"))
        before = len(runner.batches)
        for _ in range(50):
            refused(stub.Rerank, request_of("q", *"fgh"))
        assert len(runner.batches) == before
        stub.Rerank(request_of("q", "i"), metadata=metadata_of("shop"))


def test_a_call_that_is_wrong_costs_nothing():
    with limited() as server, stub_of(server.port) as stub:
        for request in (request_of("", *"abc"), request_of("q", *"abc", model="unknown")):
            with pytest.raises(grpc.RpcError):
                stub.Rerank(request, metadata=metadata_of("shop"))
        stub.Rerank(request_of("q", *"abcdef"), metadata=metadata_of("shop"))


def test_a_rate_of_tokens_lets_in_until_there_is_a_debt():
    with limited() as server, stub_of(server.port) as stub:
        first = stub.Rerank(request_of("q", "a"), metadata=metadata_of("words"))
        assert first.usage.input_tokens in range(1, 6)
        stub.Rerank(request_of("q", "a b c d e f"), metadata=metadata_of("words"))
        error = refused(stub.Rerank, request_of("q", "a"), "words")
        assert "words has used up its rate of 0.001 tokens a second" in str(error.details())


def test_calls_of_several_queries_are_charged_as_one():
    pair = tei_pb2.RerankStreamRequest
    texts = [pair(query=f"q{number % 3}", text=text) for number, text in enumerate("abcdefgh")]
    with limited() as server, channel_of(server.port) as channel:
        stream: Stream = channel.stream_unary(
            "/tei.v1.Rerank/RerankStream",
            lambda message: message.SerializeToString(),
            tei_pb2.RerankResponse.FromString,
        )
        ranks = stream(iter(texts), metadata=metadata_of("shop")).ranks
        assert len(ranks) == 8
        with pytest.raises(grpc.RpcError):
            stream(iter(texts[:1]), metadata=metadata_of("shop"))
    with limited() as server, channel_of(server.port) as channel:
        infer: Stream = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            lambda message: message.SerializeToString(),
            inference_pb2.ModelInferResponse.FromString,
        )
        infer(inference(list("pqr"), list("abc")), metadata=metadata_of("shop"))
        infer(inference(list("pqr"), list("abc")), metadata=metadata_of("shop"))
        refused(infer, inference(["p"], ["a"]))


def test_each_pair_of_a_stream_of_pairs_is_charged():
    pairs = [tei_pb2.PredictPairRequest(inputs=["q", text]) for text in "abcdefgh"]
    with limited() as server, channel_of(server.port) as channel:
        stream: Stream = channel.stream_stream(
            "/tei.v1.Predict/PredictPairStream",
            lambda message: message.SerializeToString(),
            tei_pb2.PredictResponse.FromString,
        )
        answers, code = 0, None
        try:
            for _ in stream(iter(pairs), metadata=metadata_of("shop")):
                answers += 1
        except grpc.RpcError as error:
            code = error.code()
    assert (answers, code) == (6, grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_what_finds_the_server_full_is_not_charged():
    runner = HeldRunner()
    settings = replace(settings_of(), max_calls=1)
    with serving(settings, runner=runner) as server, stub_of(server.port) as stub:
        inside = stub.Rerank.future(request_of("q", "a"), metadata=metadata_of("free"))
        wait_for(lambda: server.reranker.gate.calls == 1)
        for _ in range(10):
            error = refused(stub.Rerank, request_of("q", *"abc"), "shop")
            assert "too many calls" in str(error.details())
        runner.let_all()
        inside.result()
        stub.Rerank(request_of("q", *"abcdef"), metadata=metadata_of("shop"))


def test_the_client_raises_it_with_the_time_to_wait():
    with limited() as server, Client(f"127.0.0.1:{server.port}", token="shop-canary") as client:
        client.rerank("q", list("abcdef"))
        with pytest.raises(RateLimited) as caught:
            client.rerank("q", ["a"])
    assert caught.value.retry_after == pytest.approx(1_000, abs=100)
    assert caught.value.metadata["caller"] == "shop"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", {"query": "q", "documents": list("abc")}),
        ("/v2/rerank", {"query": "q", "documents": list("abc")}),
        ("/rerank", {"query": "q", "texts": list("abc")}),
        ("/score", {"text_1": "q", "text_2": list("abc")}),
        ("/voyage/v1/rerank", {"query": "q", "documents": list("abc")}),
        ("/pinecone/rerank", {"query": "q", "documents": [{"text": each} for each in "abc"]}),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": each} for each in "abc"]}),
        (
            "/rerank.v1.RerankService/Rerank",
            {"query": "q", "documents": [{"text": each} for each in "abc"]},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_over_rest_it_is_429_with_retry_after_in_every_dialect(path: str, body: dict[str, object]):
    tokens = ("shop-canary",)
    with limited() as server, rest_server(server.port, tokens=tokens) as port:
        bearer = {"authorization": "Bearer shop-canary", "content-type": "application/json"}
        assert [post(port, path, body, **bearer).status for _ in range(2)] == [200, 200]
        reply = post(port, path, body, **bearer)
    assert reply.status == 429
    assert int(reply.headers["retry-after"]) == pytest.approx(3_000, abs=100)
    assert b"shop has used up its rate" in reply.raw
    assert b"canary" not in reply.raw
