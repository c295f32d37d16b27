"""A call's context in a replica: what handlers ask of grpcio, over what Serve hands on."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import grpc
import pytest

from rerank_grpc.ray.calls import Aborted, CallerLeft, ReplicaContext, ReplyBytes, StreamedRequests
from rerank_grpc.ray.ingress import DEADLINE_KEY, METHOD_KEY
from tests.support import WAIT


class ServeContext:
    """What a replica uses of Serve's context."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = [(METHOD_KEY, "/rerank.v1.RerankService/Rerank"), *metadata]
        self.told: dict[str, Any] = {}

    def invocation_metadata(self):
        return self._metadata

    def peer(self):
        return "ipv4:10.0.0.1:1234"

    def set_code(self, code):
        self.told["code"] = code

    def set_details(self, details):
        self.told["details"] = details

    def set_trailing_metadata(self, metadata):
        self.told["trailers"] = metadata


def test_the_deadline_is_the_ingress_own_and_callers_metadata_is_without_it():
    context = ReplicaContext(
        ServeContext((DEADLINE_KEY, repr(time.time() + 60)), ("authorization", "Bearer t"))
    )
    left = context.time_remaining()
    assert left is not None
    assert 30 < left <= 60
    assert context.path == "/rerank.v1.RerankService/Rerank"
    assert context.invocation_metadata() == (("authorization", "Bearer t"),)
    assert ReplicaContext(ServeContext()).time_remaining() is None
    assert ReplicaContext(ServeContext((DEADLINE_KEY, "1.0"))).time_remaining() == 0.0


def test_an_error_is_set_and_not_raised_to_serve_which_would_drop_its_trailers():
    serve = ServeContext()
    context = ReplicaContext(serve)
    context.set_trailing_metadata((("key", "value"),))
    with pytest.raises(Aborted):
        context.abort(grpc.StatusCode.NOT_FOUND, "no model")
    assert serve.told == {
        "trailers": [("key", "value")],
        "code": grpc.StatusCode.NOT_FOUND,
        "details": "no model",
    }


def test_callbacks_run_once_when_the_call_ends():
    context, ran = ReplicaContext(ServeContext()), []
    assert context.add_callback(lambda: ran.append(1))
    assert context.is_active()
    context.end()
    context.end()
    assert ran == [1]
    assert not context.is_active()
    assert not context.add_callback(lambda: ran.append(2))


def test_a_callback_that_fails_is_logged_and_keeps_no_other_from_running(caplog: pytest.LogCaptureFixture):
    context, ran = ReplicaContext(ServeContext()), []
    context.add_callback(lambda: 1 / 0)
    context.add_callback(lambda: ran.append(1))
    context.end()
    assert ran == [1]
    assert "a callback of /rerank.v1.RerankService/Rerank failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_reply_is_the_bytes_that_it_was_made_of():
    assert type(ReplyBytes(b"abc").SerializeToString()) is bytes
    assert ReplyBytes().SerializeToString() == b""


def test_a_thread_takes_streamed_requests_one_by_one_and_is_freed_when_the_caller_leaves():
    async def run() -> tuple[list[bytes], BaseException | None]:
        never = asyncio.Event()

        async def requests():
            yield b"one"
            yield b"two"
            await never.wait()

        context = ReplicaContext(ServeContext())
        streamed = StreamedRequests(requests(), asyncio.get_running_loop(), context)
        taken: list[bytes] = []
        two, failed = threading.Event(), []

        def take() -> None:
            try:
                for message in streamed:
                    taken.append(message)
                    if len(taken) == 2:
                        two.set()
            except grpc.RpcError as error:
                failed.append(error)

        thread = asyncio.create_task(asyncio.to_thread(take))
        assert await asyncio.to_thread(two.wait, WAIT)
        context.end()
        await asyncio.wait_for(thread, WAIT)
        return taken, failed[0]

    taken, error = asyncio.run(run())
    assert taken == [b"one", b"two"]
    assert isinstance(error, CallerLeft)


def test_a_long_stream_of_requests_leaves_nothing_behind():
    async def run() -> int:
        async def requests():
            for number in range(100):
                yield bytes([number])

        context = ReplicaContext(ServeContext())
        streamed = StreamedRequests(requests(), asyncio.get_running_loop(), context)
        assert len(await asyncio.to_thread(list, streamed)) == 100
        return len(context._callbacks)

    assert asyncio.run(run()) <= 1


def test_no_request_is_awaited_after_the_end_of_the_call():
    async def run() -> None:
        async def requests():
            await asyncio.Event().wait()
            yield b""

        context = ReplicaContext(ServeContext())
        context.end()
        streamed = StreamedRequests(requests(), asyncio.get_running_loop(), context)
        with pytest.raises(CallerLeft):
            await asyncio.wait_for(asyncio.to_thread(next, streamed), WAIT)

    asyncio.run(run())


def test_the_end_of_streamed_requests_is_the_end():
    async def run() -> list[bytes]:
        async def requests():
            yield b"one"

        streamed = StreamedRequests(requests(), asyncio.get_running_loop(), ReplicaContext(ServeContext()))
        return await asyncio.to_thread(list, streamed)

    assert asyncio.run(run()) == [b"one"]
