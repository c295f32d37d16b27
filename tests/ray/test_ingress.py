"""What the ingress adds to Serve's handlers, for every method of a server."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from rerank_grpc.config.settings import ServerSettings
from rerank_grpc.errors import Reason
from rerank_grpc.ray.ingress import (
    DEADLINE_KEY,
    METHOD_KEY,
    PROXIED_KEY,
    add_services,
    methods,
    with_call_facts,
)
from rerank_grpc.ray.pins import DIRECT_FACTORY
from rerank_grpc.wire.status import DETAILS_KEY, PUSHBACK_KEY, read_failure
from tests.support import CountingRunner, serving

RERANK = "/rerank.v1.RerankService/Rerank"


class RpcContext:
    """What the ingress uses of grpcio's context."""

    def __init__(self, left: float | None = 5.0, *metadata: tuple[str, str]) -> None:
        self._left, self._metadata = left, metadata
        self._code: Any = 0
        self._details = ""
        self._trailers: Any = ()

    def invocation_metadata(self):
        return self._metadata

    def time_remaining(self):
        return self._left

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._trailers

    def set_code(self, code):
        self._code = code

    def set_details(self, details):
        self._details = details

    def set_trailing_metadata(self, metadata):
        self._trailers = metadata


def called(
    context: RpcContext, *, fails: tuple[Any, str] | None = None, stream: bool = False, direct: bool = False
) -> dict[str, Any]:
    """Calls through the wrapper of a handler of Serve's; returns the metadata that it sees."""
    seen: dict[str, Any] = {}

    def factory(service_method: str, streaming_type: Any) -> Any:
        async def answer(_request: Any, told: Any) -> bytes:
            seen.update(told.invocation_metadata())
            if fails:
                told.set_code(fails[0])
                told.set_details(fails[1])
            return b"reply"

        async def replies(request: Any, told: Any) -> Any:
            yield await answer(request, told)

        return replies if stream else answer

    if direct:
        factory.__name__ = DIRECT_FACTORY
    kind = SimpleNamespace(value="unary_stream" if stream else "unary_unary")
    handler = with_call_facts(factory)(service_method=RERANK, streaming_type=kind)

    async def call() -> list[bytes]:
        if stream:
            return [each async for each in handler(b"", context)]
        return [await handler(b"", context)]

    assert asyncio.run(call()) == [b"reply"]
    return seen


@pytest.mark.parametrize("stream", [False, True])
def test_the_deadline_and_the_method_go_along(stream: bool):
    seen = called(RpcContext(60.0, ("x", "y")), stream=stream)
    assert seen["x"] == "y"
    assert seen[METHOD_KEY] == RERANK
    assert 30 < float(seen[DEADLINE_KEY]) - time.time() <= 60


@pytest.mark.parametrize("left", [None, 9.2e18])
def test_a_call_without_a_deadline_has_none(left: float | None):
    assert DEADLINE_KEY not in called(RpcContext(left))


def test_callers_cannot_set_them_and_a_call_through_serves_proxy_is_marked():
    forged = (DEADLINE_KEY, "9e9"), (METHOD_KEY, "/other/Method"), (PROXIED_KEY, "0")
    assert called(RpcContext(None, *forged)) == {METHOD_KEY: RERANK, PROXIED_KEY: "1"}
    assert called(RpcContext(None, *forged), direct=True) == {METHOD_KEY: RERANK}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "text", "wanted", "reason"),
    [
        ("INTERNAL", "The actor died unexpectedly: …", "UNAVAILABLE", Reason.SHUTTING_DOWN),
        ("UNAVAILABLE", "Deployment is unavailable", "UNAVAILABLE", Reason.SHUTTING_DOWN),
        (
            "RESOURCE_EXHAUSTED",
            "Request dropped due to backpressure",
            "RESOURCE_EXHAUSTED",
            Reason.QUEUE_FULL,
        ),
    ],
)
def test_an_error_of_serves_own_is_told_as_ours(
    code: str, text: str, wanted: str, reason: Reason, stream: bool
):
    context = RpcContext()
    called(context, fails=(grpc.StatusCode[code], text), stream=stream)
    failure = read_failure(context.code(), context.details(), context.trailing_metadata())
    assert (failure.code.name, failure.reason) == (wanted, reason)
    assert failure.retry_after
    assert "actor" not in context.details()
    assert int(dict(context.trailing_metadata())[PUSHBACK_KEY]) > 0


def test_other_errors_and_those_of_the_replica_stay():
    context = RpcContext()
    called(context, fails=(grpc.StatusCode.INTERNAL, "internal error"))
    assert context.trailing_metadata() == ()
    context = RpcContext()
    context.set_trailing_metadata(((DETAILS_KEY, b"ours"),))
    called(context, fails=(grpc.StatusCode.UNAVAILABLE, "the server is stopping"))
    assert context.details() == "the server is stopping"


def test_replicas_have_every_method_of_a_server_but_the_watch_of_health():
    with serving(ServerSettings(admin_port=None), runner=CountingRunner()) as server:
        served = set(server._methods)
    named = {f"/{each.service}/{each.name}" for each in methods()}
    operators = {each for each in served if "Admin" in each or "channelz" in each}
    assert served - named - operators == {"/grpc.health.v1.Health/Watch"}
    assert named <= served


def test_handlers_are_registered_without_a_deserializer():
    """Messages do not pickle: their classes name a module that does not exist."""
    registered: dict[str, Any] = {}

    class Server:
        service_handler_factory = staticmethod(lambda service_method, streaming_type: None)

        def add_generic_rpc_handlers(self, handlers: Any) -> None:
            pass

        def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
            registered[service] = handlers

    add_services(SimpleNamespace(**{each.name: None for each in methods()}), Server())
    handlers = [handler for service in registered.values() for handler in service.values()]
    assert len(handlers) == len(list(methods()))
    assert all(handler.request_deserializer is None for handler in handlers)
    assert registered["rerank.v1.RerankService"]["StreamRerank"].response_streaming
