"""2,000 odd messages for each gRPC method: answered or refused as the caller's fault, within a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, Phase, given, settings

from rerank_grpc.protocols import inference_pb2, tei_pb2
from rerank_grpc.server.guard import NEEDS
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2
from tests.hostile.wire import messages_of
from tests.server.test_kserve import inference
from tests.support import CountingRunner, channel_of, request_of, serving, stub_of

# A message without fields leaves little to get wrong.
COUNT, COUNT_WITHOUT_FIELDS, SECONDS = 2_000, 200, 1.0
CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# By the prefix of their methods' names in records.
SERVICES = {
    "": (
        *rerank_pb2.DESCRIPTOR.services_by_name.values(),
        *health_pb2.DESCRIPTOR.services_by_name.values(),
        *reflection_pb2.DESCRIPTOR.services_by_name.values(),
        *channelz_pb2.DESCRIPTOR.services_by_name.values(),
    ),
    "tei.": tuple(tei_pb2.DESCRIPTOR.services_by_name.values()),
    "kserve.": tuple(inference_pb2.DESCRIPTOR.services_by_name.values()),
}
ADMIN = ("ModelAdminService", "Channelz")
METHODS = {
    prefix + method.name: method
    for prefix, services in SERVICES.items()
    for service in services
    for method in service.methods
    if prefix + method.name in NEEDS
}
GOOD = {
    "RerankRequest": request_of("a query", "one", "two", model="m").SerializeToString(),
    "ModelInferRequest": inference(["a query"], ["one", "two"]).SerializeToString(),
}


class Answer(NamedTuple):
    """How a call ended, and the seconds of this process that it took."""

    code: grpc.StatusCode
    text: str
    seconds: float


@pytest.fixture(scope="module")
def server() -> Iterator[RerankServer]:
    with serving(runner=CountingRunner()) as server:
        yield server


def asked(channel: grpc.Channel, path: str, message: bytes) -> Answer:
    """Sends a message to a method of any kind, and reads its answers, of a watch the first."""
    started = time.process_time()
    method: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(path)
    call = method(iter([message]), timeout=20)
    code, text = grpc.StatusCode.OK, ""
    try:
        for _ in call:
            if path.endswith("/Watch"):
                call.cancel()
                break
    except grpc.RpcError as error:
        code, text = error.code(), error.details() or ""
    return Answer(code, text, time.process_time() - started)


def test_every_method_is_asked():
    assert METHODS.keys() == NEEDS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_no_message_breaks_the_server(server: RerankServer, name: str):
    method = METHODS[name]
    path = f"/{method.containing_service.full_name}/{method.name}"
    port = server.admin_port if method.containing_service.name in ADMIN else server.port

    with channel_of(port) as channel:

        @given(message=messages_of(method.input_type, GOOD.get(method.input_type.name, b"")))
        @settings(
            max_examples=COUNT if method.input_type.fields else COUNT_WITHOUT_FIELDS,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=[*HealthCheck],
        )
        def ask(message: bytes) -> None:
            answer = asked(channel, path, message)
            if answer.seconds >= SECONDS:  # a full collection of Python's may have come between
                answer = asked(channel, path, message)
            shown = f"{answer}: {len(message):,} bytes, {message[:200].hex()}"
            assert answer.code in CODES, shown
            assert answer.seconds < SECONDS, shown
            assert "\n" not in answer.text, shown

        ask()
    with stub_of(server.port) as stub:
        reply = stub.Rerank(request_of("a query", "one", "two"), timeout=20)
    assert {result.index for result in reply.results} == {0, 1}
