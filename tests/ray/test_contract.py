"""The contract through Ray Serve, in both of its modes: callers change only the address."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from benchmarks.ray_cluster import Cluster
from rerank_grpc.client import Client
from rerank_grpc.errors import DeadlineUnreachable, InvalidRequest, QueueFull, UnknownModel
from rerank_grpc.limits import LIMITS
from rerank_grpc.protocols import inference_pb2, tei_pb2
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire.status import PUSHBACK_KEY, Failure, read_failure
from tests.command import environment
from tests.server.test_tei import TeiStub, pair, ranking, streamed
from tests.stubs import HealthStub, ReflectionStub, message_of
from tests.support import WAIT, channel_of, request_of, serving, stub_of, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

QUERY = "How do I reset my password?"
TEXTS = ["Open Settings, then Security.", "We are closed on Sunday.", "Choose a new password."]
TOKEN = (("authorization", "Bearer right-token"),)


@pytest.fixture(scope="module", params=["haproxy", "proxy"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(
        ha_proxy=request.param == "haproxy", RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S="1"
    ) as made:
        made.deploy({"model": ["embedded"], "alias": ["tiny=embedded"], "max-calls": 8})
        yield made


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.target, timeout=60) as made:
        yield made


def direct(cluster: Cluster) -> bool:
    return cluster._environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


def failure_of(error: grpc.RpcError) -> Failure:
    return read_failure(error.code(), error.details(), trailers_of(error).items())


def trailers_of(error: grpc.RpcError) -> dict[str, Any]:
    trailers: Any = error.trailing_metadata()
    return dict(trailers)


def test_scores_are_those_of_a_server(cluster: Cluster, client: Client):
    there = client.rerank(QUERY, TEXTS)
    with serving() as server, Client(f"127.0.0.1:{server.port}") as plain:
        here = plain.rerank(QUERY, TEXTS)
    assert [each.index for each in there.results] == [each.index for each in here.results]
    assert [each.logit for each in there.results] == pytest.approx(
        [each.logit for each in here.results], abs=1e-5
    )
    assert there.summary.model == "embedded"


def test_a_stream_brings_all_results_and_its_summary(client: Client):
    stream = client.stream_rerank(QUERY, TEXTS)
    assert {each.index for each in stream} == {0, 1, 2}
    assert stream.summary.usage.input_tokens > 0


def test_models_and_health_are_the_replicas_own(client: Client):
    (model,) = client.list_models()
    assert (model.name, model.aliases) == ("embedded", ("tiny",))
    assert client.rerank(QUERY, TEXTS, model="tiny").summary.model == "embedded"
    health = client.health()
    assert health.serving
    assert health.tokens_per_second > 0


def test_orchestrators_can_ask_for_health(cluster: Cluster):
    with channel_of(cluster.port) as channel:
        for service in ("", "rerank.v1.RerankService", "inference.GRPCInferenceService", "tei.v1.Rerank"):
            answer = HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="other"), timeout=WAIT)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as caught:
            list(HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=WAIT))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_reflection_lists_and_describes_the_services(cluster: Cluster):
    questions = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="rerank.v1.RerankService"),
    ]
    with channel_of(cluster.port) as channel:
        listed, file = ReflectionStub(channel).ServerReflectionInfo(iter(questions), timeout=WAIT)
    names = {each.name for each in listed.list_services_response.service}
    assert {"rerank.v1.RerankService", "tei.v1.Rerank", "grpc.health.v1.Health"} <= names
    assert "ray.serve.RayServeAPIService" not in names
    assert file.file_descriptor_response.file_descriptor_proto


def test_errors_come_with_their_details(cluster: Cluster, client: Client):
    with pytest.raises(UnknownModel, match="no model is named 'nope'"):
        client.rerank(QUERY, TEXTS, model="nope")
    with pytest.raises(InvalidRequest) as caught:
        client.rerank("", TEXTS)
    assert [each.field for each in caught.value.violations] == ["query"]
    with pytest.raises(UnknownModel):
        list(client.stream_rerank(QUERY, TEXTS, model="nope"))
    with stub_of(cluster.port) as stub, pytest.raises(grpc.RpcError) as failed:
        stub.Rerank(request_of(QUERY, *TEXTS, model="nope"), timeout=WAIT)
    assert failure_of(failed.value).metadata["model"] == "nope"
    assert trailers_of(failed.value)[PUSHBACK_KEY] == "-1"


def test_a_stream_that_fails_sends_no_result_before_its_error(cluster: Cluster):
    with stub_of(cluster.port) as stub:
        stream = stub.StreamRerank(pb.StreamRerankRequest(query=QUERY), timeout=WAIT)
        came = []
        with pytest.raises(grpc.RpcError) as caught:
            came.extend(stream)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    # Serve's own proxy sends trailers only behind a message, which is empty.
    assert [each.ByteSize() for each in came] == ([] if direct(cluster) else [0])


def test_a_deadline_reaches_the_replica(cluster: Cluster, client: Client):
    texts = [f"text {number} " + "word " * 150 for number in range(900)]
    with stub_of(cluster.port) as stub:
        first = stub.Rerank.future(request_of(QUERY, *texts), timeout=100)
        wait_for(lambda: client.health().queue_tokens > 0, 60)
        began = time.monotonic()
        with pytest.raises(DeadlineUnreachable) as caught:
            client.rerank(QUERY, [f"other {text}" for text in texts[:200]], timeout=1.5)
        assert time.monotonic() - began < 1.5
        assert caught.value.retry_after
        first.cancel()
    wait_for(lambda: client.health().queue_tokens == 0, 60)


def test_a_caller_that_leaves_frees_the_queue(cluster: Cluster, client: Client):
    texts = [f"left {number} " + "word " * 150 for number in range(900)]
    with stub_of(cluster.port) as stub:
        calls = [
            stub.Rerank.future(request_of(QUERY, *texts), timeout=100),
            stub.StreamRerank(
                pb.StreamRerankRequest(
                    query=QUERY, documents=[pb.Document(text=f"{text} s") for text in texts]
                ),
                timeout=100,
            ),
        ]
        wait_for(lambda: client.health().queue_tokens > 0, 60)
        for call in calls:
            call.cancel()
        wait_for(lambda: client.health().queue_tokens == 0, 60)


def test_a_full_gate_refuses_with_the_time_to_come_back(cluster: Cluster, client: Client):
    texts = [f"full {number} " + "word " * 100 for number in range(300)]
    failures: list[grpc.RpcError] = []
    with stub_of(cluster.port) as stub:
        calls = [
            stub.Rerank.future(request_of(QUERY, *[f"{text} {call}" for text in texts]), timeout=100)
            for call in range(20)
        ]
        ended = threading.Semaphore(0)
        for call in calls:
            call.add_done_callback(lambda _: ended.release())
        # Twelve are refused at once; the others need not be waited for.
        for _ in range(12):
            assert ended.acquire(timeout=60)
        failures += [call.exception() for call in calls if call.done() and call.exception()]
        for call in calls:
            call.cancel()
    codes = {failure.code() for failure in failures}
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all(int(trailers_of(each)[PUSHBACK_KEY]) >= 100 for each in failures)
    assert failure_of(failures[0]).reason is QueueFull.reason
    assert failure_of(failures[0]).retry_after
    wait_for(lambda: client.health().queue_tokens == 0, 60)


def test_the_limits_of_messages_hold(cluster: Cluster):
    options = (("grpc.max_send_message_length", -1),)
    with channel_of(cluster.port, *options) as channel:
        call: Any = channel.unary_unary("/rerank.v1.RerankService/Rerank")
        whole = request_of(QUERY, *["x" * 8_000] * 1_000, return_documents=True, max_tokens_per_document=4)
        assert 7.5 * 2**20 < whole.ByteSize() < LIMITS.message_bytes
        reply = pb.RerankResponse.FromString(call(whole.SerializeToString(), timeout=100))
        assert len(reply.results) == 1_000
        for size, code in ((9 << 20, "INVALID_ARGUMENT"), (17 << 20, "RESOURCE_EXHAUSTED")):
            with pytest.raises(grpc.RpcError) as caught:
                call(request_of("q", "x" * size).SerializeToString(), timeout=100)
            assert caught.value.code() is grpc.StatusCode[code], message_of(caught.value)
        many = pb.RerankRequest(query="q", documents=[pb.Document()] * 500_000)
        with pytest.raises(grpc.RpcError, match="more than the 1,000 that are allowed"):
            call(many.SerializeToString(), timeout=100)


def test_a_request_may_be_compressed(cluster: Cluster):
    with stub_of(cluster.port) as stub:
        reply = stub.Rerank(request_of(QUERY, *TEXTS), compression=grpc.Compression.Gzip, timeout=WAIT)
    assert len(reply.results) == 3


def test_callers_of_tei_are_served(cluster: Cluster):
    with channel_of(cluster.port) as channel:
        stub = TeiStub(channel)
        ranks = stub.Rerank(ranking(QUERY, *TEXTS), timeout=WAIT).ranks
        assert sorted(each.index for each in ranks) == [0, 1, 2]
        again = stub.RerankStream(iter(streamed(QUERY, *TEXTS)), timeout=WAIT).ranks
        assert [each.index for each in again] == [each.index for each in ranks]
        assert stub.Info(tei_pb2.InfoRequest(), timeout=WAIT).max_client_batch_size == LIMITS.documents
        assert len(stub.PredictPair(pair(QUERY, TEXTS[0]), timeout=WAIT).predictions) == 1
        pairs = [pair(QUERY, text) for text in TEXTS]
        assert len(list(stub.PredictPairStream(iter(pairs), timeout=WAIT))) == 3


def test_callers_of_kserve_are_served(cluster: Cluster):
    with channel_of(cluster.port) as channel:
        path = "/inference.GRPCInferenceService/{}"
        ask: Any = channel.unary_unary
        ready = ask(path.format("ServerReady"))(b"", timeout=WAIT)
        assert inference_pb2.ServerReadyResponse.FromString(ready).ready
        metadata = ask(path.format("ModelMetadata"))(b"", timeout=WAIT)
        assert inference_pb2.ModelMetadataResponse.FromString(metadata).name == "embedded"


def test_rest_in_front_passes_calls_on(cluster: Cluster):
    command = [sys.executable, "-m", "rerank_grpc", "rest", "--target", cluster.target, "--rest-port", "0"]
    with subprocess.Popen(
        [*command, "--metrics-port", "off"], stderr=subprocess.PIPE, text=True, env=environment()
    ) as rest:
        assert rest.stderr is not None
        url = next(
            word.rstrip(",") for line in rest.stderr for word in line.split() if word.startswith("http://")
        )
        body = json.dumps({"query": QUERY, "documents": TEXTS}).encode()
        asked = urllib.request.Request(f"{url}/v1/rerank", body, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=WAIT) as answer:
            assert len(json.load(answer)["results"]) == 3
        rest.terminate()
        rest.stderr.read()


def test_serves_http_port_tells_where_the_service_is(cluster: Cluster):
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.http_port}/", timeout=WAIT) as answer:
        assert "served over gRPC" in answer.read().decode()
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.http_port}/-/healthz", timeout=WAIT) as answer:
        assert answer.status == 200


def test_tokens_guard_calls_and_reflection_and_not_health(cluster: Cluster, tmp_path: Path):
    """The last test: it replaces the application."""
    file = tmp_path / "tokens"
    file.write_text("right-token\n")
    before = set(cluster.replicas())
    cluster.deploy({"token-file": str(file)})
    wait_for(lambda: not before & set(cluster.replicas()), 60)
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    with (
        channel_of(cluster.port) as channel,
        stub_of(cluster.port) as stub,
        Client(cluster.target) as without,
    ):
        calls: list[Any] = [
            lambda **more: stub.Rerank(request_of(QUERY, *TEXTS), timeout=WAIT, **more),
            lambda **more: list(stub.StreamRerank(pb.StreamRerankRequest(query=QUERY), timeout=WAIT, **more)),
            lambda **more: stub.ListModels(pb.ListModelsRequest(), timeout=WAIT, **more),
            lambda **more: TeiStub(channel).Rerank(ranking(QUERY, *TEXTS), timeout=WAIT, **more),
            lambda **more: list(
                ReflectionStub(channel).ServerReflectionInfo(iter([listing]), timeout=WAIT, **more)
            ),
        ]
        for call in calls:
            for metadata in ((), (("authorization", "Bearer wrong"),)):
                with pytest.raises(grpc.RpcError) as caught:
                    call(metadata=metadata)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert len(calls[0](metadata=TOKEN).results) == 3
        assert calls[4](metadata=TOKEN)
        check = HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT)
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(Exception, match="send a token as metadata"):
            without.health()
    assert "right-token" not in cluster.log() + cluster.logs()
