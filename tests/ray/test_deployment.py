"""The replica without Ray: the methods that Serve calls, on a loop of this process."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import torch

from benchmarks.sleeping import SleepingLoader
from rerank_grpc.config import allowance
from rerank_grpc.config.options import OptionError
from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import ConfigurationError, Reason
from rerank_grpc.ray import deployment
from rerank_grpc.ray.autoscaling import BUSY_SHARE, QUEUED_SECONDS
from rerank_grpc.ray.deployment import RerankReplica, most_ongoing
from rerank_grpc.ray.ingress import DEADLINE_KEY, METHOD_KEY, PROXIED_KEY, methods
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.wire.status import read_failure
from tests.ray.test_calls import ServeContext
from tests.support import request_of, wait_for

SERVICE = "/rerank.v1.RerankService/"


@pytest.fixture(scope="module")
def replica() -> Iterator[Any]:
    made = RerankReplica({"max-calls": "8"}, SleepingLoader(0.0))
    yield made
    made.__del__()


@pytest.fixture(autouse=True, scope="module")
def _log() -> Iterator[None]:
    """Gives the package's logger back as it was: a replica takes it, in a process of its own."""
    logger = logging.getLogger("rerank_grpc")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.propagate = propagate
    logger.handlers[:] = handlers


class Called(ServeContext):
    """A call of a method, by its path."""

    def __init__(self, path: str, *metadata: tuple[str, str]) -> None:
        super().__init__(*metadata)
        self._metadata = [(METHOD_KEY, path), *metadata]


def test_it_has_a_method_for_each_name_that_serve_calls(replica: Any):
    for method in methods():
        function = getattr(RerankReplica, method.name)
        assert function is (RerankReplica.stream if method.gives_stream else RerankReplica.answer)


def test_it_answers_bytes_with_bytes(replica: Any):
    request = request_of("q w", "a b", "c d").SerializeToString()
    reply = asyncio.run(replica.Rerank(request, Called(f"{SERVICE}Rerank")))
    assert len(pb.RerankResponse.FromString(reply.SerializeToString()).results) == 2


def test_an_error_has_its_details_and_an_empty_reply(replica: Any):
    context = Called(f"{SERVICE}Rerank")
    reply = asyncio.run(replica.Rerank(request_of("", "a").SerializeToString(), context))
    assert reply.SerializeToString() == b""
    told = context.told
    failure = read_failure(told["code"], told["details"], told["trailers"])
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_REQUEST)


def test_a_stream_sends_its_parts_and_one_that_fails_nothing(replica: Any):
    async def parts(request: pb.StreamRerankRequest, context: Called) -> list[bytes]:
        return [
            each.SerializeToString()
            async for each in replica.StreamRerank(request.SerializeToString(), context)
        ]

    request = pb.StreamRerankRequest(query="q", documents=[pb.Document(text="a"), pb.Document(text="b")])
    came = asyncio.run(parts(request, Called(f"{SERVICE}StreamRerank")))
    assert pb.StreamRerankResponse.FromString(came[-1]).HasField("summary")
    context = Called(f"{SERVICE}StreamRerank")
    assert asyncio.run(parts(pb.StreamRerankRequest(query="q"), context)) == []
    assert context.told["code"] is grpc.StatusCode.INVALID_ARGUMENT
    # Serve's own proxy drops the status of a stream without a message.
    context = Called(f"{SERVICE}StreamRerank", (PROXIED_KEY, "1"))
    assert asyncio.run(parts(pb.StreamRerankRequest(query="q"), context)) == [b""]
    assert context.told["code"] is grpc.StatusCode.INVALID_ARGUMENT


def test_a_caller_that_leaves_frees_the_queue():
    replica: Any = RerankReplica({}, SleepingLoader(0.01, batch_tokens=64))
    request = request_of("q", *[f"a {number}" for number in range(900)]).SerializeToString()

    async def leave() -> None:
        call = asyncio.create_task(replica.Rerank(request, Called(f"{SERVICE}Rerank")))
        await asyncio.to_thread(wait_for, lambda: replica._registry.health("").queue_tokens > 0)
        stats = await replica.record_autoscaling_stats()
        assert stats[QUEUED_SECONDS] > 1
        assert 0 <= stats[BUSY_SHARE] <= 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.to_thread(wait_for, lambda: replica._registry.health("").queue_tokens == 0)

    asyncio.run(leave())
    replica.__del__()


def test_a_deadline_that_has_passed_ends_a_call(replica: Any):
    context = Called(f"{SERVICE}Rerank", (DEADLINE_KEY, repr(time.time() - 1)))
    asyncio.run(replica.Rerank(request_of("q", "a").SerializeToString(), context))
    assert context.told["code"] is grpc.StatusCode.DEADLINE_EXCEEDED


def test_an_idle_replica_tells_of_no_work_and_of_health(replica: Any):
    stats = asyncio.run(replica.record_autoscaling_stats())
    assert stats[QUEUED_SECONDS] == 0
    replica.check_health()
    assert "over gRPC" in asyncio.run(replica(None))


def test_a_hung_device_asks_for_a_new_process():
    replica = RerankReplica({}, SleepingLoader(0.0))
    replica._on_hang()
    with pytest.raises(RuntimeError, match="the device of a model hangs"):
        replica.check_health()
    replica.__del__()


def test_tokens_come_from_the_environment_and_guard_every_method(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RERANK_TOKENS", "right")
    replica: Any = RerankReplica({}, SleepingLoader(0.0))
    request = request_of("q", "a").SerializeToString()
    context = Called(f"{SERVICE}Rerank")
    asyncio.run(replica.Rerank(request, context))
    assert context.told["code"] is grpc.StatusCode.UNAUTHENTICATED
    context = Called(f"{SERVICE}Rerank", ("authorization", "Bearer right"))
    assert asyncio.run(replica.Rerank(request, context)).SerializeToString()
    check = asyncio.run(replica.Check(b"", Called("/grpc.health.v1.Health/Check")))
    assert check.SerializeToString()
    replica.__del__()


def test_a_bad_option_is_told_before_anything_starts():
    with pytest.raises(OptionError, match="--device: 'tpu'"):
        RerankReplica({"device": "tpu"})


def test_a_replica_of_another_release_is_told_before_anything_starts():
    with pytest.raises(
        ConfigurationError, match=r"^rerank-grpc .* is on the node .*, and 0\.0\.1 built the app"
    ):
        RerankReplica({}, SleepingLoader(0.0), "0.0.1")


def test_a_replica_without_tokens_says_that_any_caller_is_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(logging.getLogger("rerank_grpc"), "propagate", True)
    monkeypatch.setattr(deployment, "_log_to_stderr", lambda level: None)
    RerankReplica({}, SleepingLoader(0.0)).__del__()
    assert "any caller is served: set RERANK_TOKENS" in caplog.text
    caplog.clear()
    monkeypatch.setenv("RERANK_TOKENS", "right")
    RerankReplica({}, SleepingLoader(0.0)).__del__()
    assert "any caller" not in caplog.text


def test_a_line_of_the_log_has_its_fields_behind_it():
    record = logging.makeLogRecord({"msg": "a call", "levelname": "INFO", "method": "Rerank", "none": None})
    assert (
        deployment.FieldsFormatter("%(asctime)s %(message)s").format(record).endswith(" a call method=Rerank")
    )


def test_the_gate_refuses_before_serve_does():
    settings = ServerSettings(max_calls=200)
    assert most_ongoing(settings) > settings.max_calls


def test_a_replica_follows_a_quota_of_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "processors", lambda _root: allowance.Processors(4, 1.5, 1))
    for variable in allowance.THREADS_VARIABLES:  # so that both are put back behind the test
        monkeypatch.setenv(variable, "")
        del os.environ[variable]
    before = torch.get_num_threads()
    try:
        RerankReplica({}, SleepingLoader(0.0)).__del__()
        assert torch.get_num_threads() == 1
        assert [os.environ[variable] for variable in allowance.THREADS_VARIABLES] == ["1", "1"]
    finally:
        torch.set_num_threads(before)
