"""Calls from many callers at once, cancelled calls, streams, and two servers side by side."""

import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest

from rerank_grpc.client import Client
from rerank_grpc.config.settings import EngineSettings, ModelSpec, ServerSettings
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.support import (
    NO_PROXY,
    WAIT,
    CountingRunner,
    HeldRunner,
    channel_of,
    loaded_in,
    request_of,
    serving,
    stub_of,
    wait_for,
)

TOPICS = [
    "pandas eat bamboo",
    "the capital of France",
    "gRPC deadlines",
    "tokens in a batch",
    "rain in spring",
]


def test_64_callers_and_2000_requests_every_score_equals_the_pairs_own():
    chance = random.Random(3)
    texts = [f"{chance.choice(TOPICS)} {n}" for n in range(60)]
    queries = ["what do pandas eat?", "how long may a call take?"]
    with serving() as server, stub_of(server.port) as stub:
        alone = {
            (query, text): stub.Rerank(request_of(query, text)).results[0].logit
            for query in queries
            for text in texts
        }
        calls = [(chance.choice(queries), chance.sample(texts, chance.randint(1, 4))) for _ in range(2_000)]

        def call(work: tuple[str, list[str]]) -> float:
            query, documents = work
            results = stub.Rerank(request_of(query, *documents), timeout=60).results
            logits = [result.logit for result in results]
            assert sorted(result.index for result in results) == list(range(len(documents)))
            assert logits == sorted(logits, reverse=True)
            off: float = max(abs(result.logit - alone[query, documents[result.index]]) for result in results)
            return off

        with ThreadPoolExecutor(64) as callers:
            assert max(callers.map(call, calls)) < 1e-5


def test_results_are_ordered_cut_and_filtered():
    with serving() as server, stub_of(server.port) as stub:
        query, documents = "what is a panda?", ["rain", "A panda is a bear.", "A panda is a bear.", "bears"]
        every = stub.Rerank(request_of(query, *documents)).results
        assert [result.index for result in every][:2] == [1, 2]  # a tie keeps the caller's order
        top = stub.Rerank(request_of(query, *documents, top_n=2, return_documents=True)).results
        assert [result.document.text for result in top] == ["A panda is a bear."] * 2
        bound = every[2].relevance_score
        above = stub.Rerank(request_of(query, *documents, min_relevance_score=bound)).results
        assert [result.index for result in above] == [result.index for result in every[:3]]
        assert not every[0].HasField("document")


def test_an_instruction_is_left_out_where_the_model_takes_none_and_the_caller_says_so():
    with serving() as server, stub_of(server.port) as stub:
        plain = stub.Rerank(request_of("pandas", *TOPICS))
        with pytest.raises(grpc.RpcError, match="this model takes no instruction"):
            stub.Rerank(request_of("pandas", *TOPICS, instruction="judge"))
        request = request_of("pandas", *TOPICS, instruction="judge", ignore_unsupported_options=True)
        left_out = stub.Rerank(request)
        streamed = stub.StreamRerank(pb.StreamRerankRequest.FromString(request.SerializeToString()))
        assert left_out.results == plain.results
        assert {result.index: result.logit for part in streamed for result in part.results} == pytest.approx(
            {result.index: result.logit for result in plain.results}, abs=1e-5
        )


def test_usage_counts_tokens_and_pairs_that_cost_nothing():
    with serving() as server, stub_of(server.port) as stub:
        usage = stub.Rerank(request_of("panda", "bear", "bear", "tree")).usage
        assert usage.input_tokens > 0
        assert usage.inference_duration.ToNanoseconds() > 0


def test_a_stream_carries_every_result_once_and_the_summary_at_last():
    texts = [f"document {n} about {TOPICS[n % 5]}" for n in range(50)]
    with serving() as server, stub_of(server.port) as stub:
        whole = stub.Rerank(request_of("pandas", *texts))
        request = pb.StreamRerankRequest.FromString(request_of("pandas", *texts).SerializeToString())
        *parts, last = stub.StreamRerank(request)
        results = [result for part in parts for result in part.results]
        assert {result.index: result.logit for result in results} == pytest.approx(
            {result.index: result.logit for result in whole.results}, abs=1e-5
        )
        assert last.summary.model == "embedded"
        assert last.summary.usage.input_tokens == whole.usage.input_tokens
        assert not last.results
        assert not any(part.HasField("summary") for part in parts)


def test_a_streams_best_top_n_are_the_answer():
    texts = [f"document {n} about {TOPICS[n % 5]}" for n in range(200)]
    settings = replace(ServerSettings(), engine=EngineSettings(max_batch_tokens=200))
    with serving(settings) as server, stub_of(server.port) as stub:
        whole = stub.Rerank(request_of("pandas", *texts, top_n=5))
        message = request_of("pandas", *texts, top_n=5).SerializeToString()
        parts = stub.StreamRerank(pb.StreamRerankRequest.FromString(message))
        results = [result for part in parts for result in part.results]
        best = sorted(results, key=lambda result: (-result.logit, result.index))[:5]
        assert {result.index for result in best} == {result.index for result in whole.results}
        assert len(results) < len(texts)


def test_r8_killing_the_client_ends_its_call():
    runner = HeldRunner()
    settings = replace(ServerSettings(), engine=EngineSettings(max_batch_tokens=40))
    with serving(settings, runner=runner) as server:
        script = (
            "import grpc\n"
            "from rerank_grpc.v1 import rerank_pb2 as pb, rerank_pb2_grpc as g\n"
            f"channel = grpc.insecure_channel('127.0.0.1:{server.port}', [{NO_PROXY}])\n"
            "stub = g.RerankServiceStub(channel)\n"
            "documents = [pb.Document(text=f'document {n}') for n in range(1000)]\n"
            "stub.Rerank(pb.RerankRequest(query='q', documents=documents))\n"
        )
        client = subprocess.Popen([sys.executable, "-c", script])
        runner.await_batch()
        engine = loaded_in(server).engine
        assert engine.queued_tokens > 0
        client.kill()
        client.wait(WAIT)
        wait_for(lambda: engine.queued_tokens == 0)
        runner.let_all()
        assert len(runner.batches) <= 1


def test_one_channel_with_as_many_callers_as_are_admitted_loses_none():
    """grpcio's overload protection refuses calls with RST_STREAM where streams are allowed too sparsely."""
    settings = replace(ServerSettings(), max_calls=64)
    with serving(settings, runner=CountingRunner()) as server, stub_of(server.port) as stub:

        def call(number: int) -> int:
            return len(stub.Rerank(request_of("q", f"document {number}"), timeout=60).results)

        with ThreadPoolExecutor(64) as callers:
            assert sum(callers.map(call, range(3_000))) == 3_000


def test_a_client_that_retries_loses_none_though_its_callers_are_more_than_are_admitted():
    settings = replace(ServerSettings(), max_calls=16)
    with (
        serving(settings, runner=CountingRunner()) as server,
        Client(f"127.0.0.1:{server.port}", timeout=60, retries=4) as client,
        ThreadPoolExecutor(40) as callers,
    ):
        calls = callers.map(lambda n: len(client.rerank("q", [f"document {n}"]).results), range(1_000))
        assert sum(calls) == 1_000


def test_two_models_answer_side_by_side_by_name_and_alias():
    models = (ModelSpec("one", "test", ("bge-reranker-base-local",)), ModelSpec("two", "test"))
    settings = replace(ServerSettings(), models=models)
    with serving(settings, runner=CountingRunner()) as server, stub_of(server.port) as stub:
        names = {name: stub.Rerank(request_of("q", "d", model=name)).model for name in ("", "one", "two")}
        assert names == {"": "one", "one": "one", "two": "two"}
        assert stub.Rerank(request_of("q", "d", model="bge-reranker-base-local")).model == "one"
        listed = stub.ListModels(pb.ListModelsRequest()).models
        assert [(model.name, model.is_default) for model in listed] == [("one", True), ("two", False)]


def test_two_models_of_one_name_are_refused():
    models = (ModelSpec("one", "test"), ModelSpec("two", "test", ("one",)))
    with pytest.raises(ConfigurationError, match="two models are named 'one'"):
        RerankServer(replace(ServerSettings(), models=models, port=0, admin_port=0))


def test_r24_a_second_server_on_the_same_port_is_refused_and_the_port_named():
    with serving(runner=CountingRunner()) as server, pytest.raises(ConfigurationError) as refusal:
        RerankServer(replace(ServerSettings(), port=server.port, admin_port=0))
    assert str(server.port) in str(refusal.value)
    assert "--port" in str(refusal.value)


def test_health_tells_the_queue_and_the_rate():
    runner = HeldRunner()
    with serving(runner=runner) as server, stub_of(server.port) as stub:
        call = stub.Rerank.future(request_of("q", "d"))
        runner.await_batch()
        queued = stub.Rerank.future(request_of("q", "another d"))
        wait_for(lambda: stub.Health(pb.HealthRequest()).queue_tokens == 5)
        runner.let_all()
        call.result(WAIT)
        queued.result(WAIT)
        health = stub.Health(pb.HealthRequest(model="embedded"))
        assert health.state == pb.MODEL_STATE_READY
        assert (health.queue_tokens, health.queue_capacity_tokens) == (0, EngineSettings().max_queue_tokens)
        assert health.tokens_per_second > 0


def test_stopping_lets_calls_inside_finish_and_refuses_new_ones():
    runner = HeldRunner()
    with serving(runner=runner) as server, stub_of(server.port) as stub, channel_of(server.port):
        inside = stub.Rerank.future(request_of("q", "d"))
        runner.await_batch()
        stopping = threading.Thread(target=server.stop, args=[WAIT])
        stopping.start()
        runner.let_all()
        assert len(inside.result(WAIT).results) == 1
        stopping.join(WAIT)
        assert not stopping.is_alive()
        with pytest.raises(grpc.RpcError):
            stub.Rerank(request_of("q", "d"), timeout=1)
