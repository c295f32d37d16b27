"""Both clients against the service itself, with the embedded model."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

import grpc
import pytest

from rerank_grpc import __version__
from rerank_grpc.client import (
    DeadlineExceeded,
    InvalidRequest,
    ModelLoading,
    QueueFull,
    RerankError,
    ServerUnavailable,
    ShuttingDown,
    State,
    Unauthenticated,
    UnknownModel,
    UnsupportedOption,
)
from rerank_grpc.client.channel import service_config
from rerank_grpc.config.settings import EngineSettings, ServerSettings
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.server.test_errors import delay_ms_of, details_of
from tests.support import LONG, WAIT, HeldRunner, LateLoader, channel_of, request_of, serving, wait_for

QUERY = "What do pandas eat?"
DOCUMENTS = ["Paris is the capital of France.", "Bamboo is what pandas eat.", "Pandas live in China."]


@pytest.fixture(scope="module")
def service():
    with serving() as service:
        yield service


@pytest.fixture
def client(connect, service):
    return connect(f"127.0.0.1:{service.port}")


def test_documents_come_back_best_first(client):
    response = client.rerank(QUERY, DOCUMENTS, top_n=2, return_documents=True)
    assert [result.index for result in response.results] == [1, 2]
    assert response.results[0].document.text == DOCUMENTS[1]
    assert response.results[0].relevance_score > response.results[1].relevance_score
    assert response.summary.model == "embedded"
    assert response.summary.usage.input_tokens > 0


def test_a_stream_gives_the_scores_of_the_single_reply(client):
    stream = client.stream_rerank(QUERY, DOCUMENTS)
    streamed = {result.index: result.relevance_score for result in stream}
    single = {result.index: result.relevance_score for result in client.rerank(QUERY, DOCUMENTS).results}
    assert streamed == pytest.approx(single, abs=1e-5)
    assert stream.summary.model == "embedded"


def test_the_service_describes_itself(client):
    assert client.wait_until_ready(WAIT).state is State.READY
    assert client.health("embedded").version == __version__
    (model,) = client.list_models()
    assert (model.name, model.is_default, model.state) == ("embedded", True, State.READY)
    assert model.scoring is not None


def test_the_services_refusals_are_the_same_classes_here(client):
    with pytest.raises(UnknownModel) as unknown:
        client.rerank(QUERY, DOCUMENTS, "none-such")
    assert "embedded" in unknown.value.metadata["known_models"]
    with pytest.raises(InvalidRequest) as empty:
        client.rerank(QUERY, [])
    assert [violation.field for violation in empty.value.violations] == ["documents"]
    with pytest.raises(UnsupportedOption):
        list(client.stream_rerank(QUERY, DOCUMENTS, instruction="Judge."))


def test_a_service_with_tokens_asks_for_one(connect):
    settings = ServerSettings(access_tokens=("s3cret",))
    with serving(settings, runner=HeldRunner()) as service:
        target = f"127.0.0.1:{service.port}"
        assert connect(target, token="s3cret").list_models()
        for wrong in (None, "other"):
            with pytest.raises(Unauthenticated):
                connect(target, token=wrong).list_models()


def test_a_full_queue_is_refused_with_its_delay_and_taken_after_it(connect):
    runner = HeldRunner()
    settings = ServerSettings(engine=EngineSettings(max_batch_tokens=16, max_queue_tokens=16))
    with serving(settings, runner=runner) as service:
        target = f"127.0.0.1:{service.port}"
        impatient, patient = connect(target, retries=0), connect(target, retries=4)
        text = "one two three four five six seven eight nine ten"
        calls = [threading.Thread(target=patient.rerank, args=("q", [f"{n} {text}"])) for n in range(2)]
        calls[0].start()
        runner.await_batch()
        calls[1].start()
        wait_for(lambda: impatient.health().queue_tokens > 0)
        with pytest.raises(QueueFull) as full:
            impatient.rerank("q", [text])
        assert full.value.retry_after is not None
        assert full.value.retry_after > 0
        assert int(full.value.metadata["queue_capacity_tokens"]) == 16
        runner.let_all()
        assert len(patient.rerank("q", [text]).results) == 1
        for call in calls:
            call.join()


def test_a_deadline_ends_a_call_that_waits_for_the_device(connect):
    runner = HeldRunner()
    with serving(runner=runner) as service:
        with pytest.raises(DeadlineExceeded):
            connect(f"127.0.0.1:{service.port}").rerank("q", ["a"], timeout=0.3)
        runner.let_all()


# How much longer the second and the third attempt may take, of which a tenth is the answer's.
LONGER = 1, 3, 10


def refusal(client: Any, *request: Any, timeouts: Iterable[float]) -> RerankError:
    """Has a call fail by what the service says within its time, which a busy machine may let pass before."""
    for timeout in timeouts:
        began = monotonic()
        with pytest.raises(RerankError) as caught:
            client.rerank(*request, timeout=timeout)
        if monotonic() - began < timeout:
            return caught.value
    raise AssertionError("no answer came in time") from caught.value


@contextmanager
def loading() -> Iterator[RerankServer]:
    """Runs a server whose model is being loaded until the end."""
    loader = LateLoader()
    service = RerankServer(replace(ServerSettings(), port=0, admin_port=None), loader=loader)
    service.start()
    try:
        yield service
    finally:
        loader.may_load.set()
        service.stop(5)


@pytest.mark.parametrize("timeout", [0.5, 1.0])
def test_a_model_that_loads_longer_than_the_deadline_is_told_as_loading(connect, timeout):
    with loading() as service, ThreadPoolExecutor(5) as threads:
        client = connect(f"127.0.0.1:{service.port}")
        timeouts = [timeout * each for each in LONGER]
        calls = [threads.submit(refusal, client, "q", ["a"], timeouts=timeouts) for _ in range(5)]
        failures = [call.result(LONG) for call in calls]
    assert [type(failure) for failure in failures] == [ModelLoading] * 5
    assert all(isinstance(failure, ModelLoading) and (failure.retry_after or 0) >= 1 for failure in failures)


def test_grpcs_own_retries_hand_over_that_a_model_is_loading():
    """A channel with the client's service config, and nothing else of the client."""
    with (
        loading() as service,
        channel_of(service.port, ("grpc.service_config", service_config(3))) as channel,
    ):
        for timeout in (0.5 * each for each in LONGER):  # as `refusal` does
            began = monotonic()
            with pytest.raises(grpc.RpcError) as caught:
                rerank_pb2_grpc.RerankServiceStub(channel).Rerank(request_of("q", "a"), timeout=timeout)
            if in_time := monotonic() - began < timeout:
                break
    assert in_time
    message, trailers = details_of(caught.value)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (delay_ms_of(message) or 0) >= 1000
    assert trailers["grpc-retry-pushback-ms"] == "-1"


def test_a_full_queue_is_told_as_full_where_the_deadline_is_shorter_than_its_delay(connect):
    runner = HeldRunner()
    settings = ServerSettings(engine=EngineSettings(max_batch_tokens=16, max_queue_tokens=16))
    with serving(settings, runner=runner) as service, ThreadPoolExecutor(2) as threads:
        client = connect(f"127.0.0.1:{service.port}")
        text = "one two three four five six seven eight nine ten"
        inside = [threads.submit(client.rerank, "q", [f"0 {text}"])]
        runner.await_batch()
        inside.append(threads.submit(client.rerank, "q", [f"1 {text}"]))
        wait_for(lambda: client.health().queue_tokens > 0)
        for timeout in (0.1, 0.3, 0.5):
            full = refusal(client, "q", [text], timeouts=[timeout] * 3)
            assert isinstance(full, QueueFull)
            assert full.retry_after is not None
            assert full.retry_after >= 0.1
        runner.let_all()
        assert all(len(call.result(WAIT).results) == 1 for call in inside)


def test_a_service_that_has_stopped_is_unavailable(connect):
    with serving(runner=HeldRunner()) as service:
        client = connect(f"127.0.0.1:{service.port}")
        client.health()
    with pytest.raises((ShuttingDown, ServerUnavailable)):
        client.rerank("q", ["a"])
