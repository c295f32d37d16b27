"""How a client is made: its arguments, TLS, channel options, and the loop it belongs to."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest

from rerank_grpc.client import AsyncClient, Client
from rerank_grpc.client.channel import channel_options, service_config
from rerank_grpc.limits import LIMITS
from tests.client.scripted_server import hang

TARGET = "rerank.internal:50051"
MADE = pytest.mark.parametrize("kind", [Client, AsyncClient])


@MADE
@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"target": "http://localhost:50051"}, ValueError, "target: is not HOST:PORT"),
        ({"target": ""}, ValueError, "target: is not HOST:PORT"),
        ({"target": 50051}, TypeError, "target: a str"),
        ({"token": "with space"}, ValueError, "token: not empty, printable"),
        ({"token": "пароль"}, ValueError, "token: not empty, printable"),
        ({"token": ""}, ValueError, "token: not empty, printable"),
        ({"token": b"bytes"}, TypeError, "token: a str"),
        ({"timeout": 0}, ValueError, "timeout: more than 0"),
        ({"timeout": float("inf")}, ValueError, "timeout: more than 0 seconds and finite"),
        ({"timeout": None}, TypeError, "timeout: seconds"),
        ({"retries": 5}, ValueError, "retries: 0 to 4"),
        ({"retries": -1}, ValueError, "retries: 0 to 4"),
        ({"credentials": 5}, TypeError, "credentials: grpc.ChannelCredentials, not int"),
        ({"ca": 5}, TypeError, "ca: a path, or PEM in bytes"),
    ],
)
def test_a_bad_argument_is_refused_by_name(kind, arguments, error, says):
    with pytest.raises(error, match=says) as refused:
        kind(**arguments)
    assert "пароль" not in str(refused.value)


def test_certificates_come_one_way_only():
    with pytest.raises(ValueError, match="credentials: not together with tls, ca"):
        Client(ca=b"", credentials=grpc.ssl_channel_credentials())


def test_the_token_is_not_in_a_clients_description(server):
    with Client(server.target, token="s3cret") as client:
        assert "s3cret" not in repr(vars(client))


def test_the_channel_takes_what_the_service_may_send_and_keeps_what_a_retry_needs():
    options: dict[str, Any] = dict(channel_options(TARGET, 3))
    assert options["grpc.max_receive_message_length"] == LIMITS.reply_bytes == 16 << 20
    assert options["grpc.per_rpc_retry_buffer_size"] > LIMITS.message_bytes
    assert options["grpc.keepalive_time_ms"] > 300_000
    assert dict(channel_options(TARGET, 3, [("grpc.keepalive_time_ms", 1)]))["grpc.keepalive_time_ms"] == 1


def test_what_a_lost_server_leaves_is_retried_by_grpc_and_every_replica_is_used():
    config = json.loads(service_config(3))
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    (method,) = config["methodConfig"]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]
    assert method["retryPolicy"]["maxAttempts"] == 4
    assert "methodConfig" not in json.loads(service_config(0))


def test_an_async_client_may_be_made_before_its_loop(server):
    client = AsyncClient(server.target)

    async def use():
        async with client:
            return await client.rerank("q", ["a"])

    assert len(asyncio.run(use()).results) == 1


def test_an_async_client_does_not_work_in_a_second_loop(server, loop):
    client = AsyncClient(server.target)
    asyncio.run_coroutine_threadsafe(client.health(), loop).result(10)
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(client.health())
    asyncio.run_coroutine_threadsafe(client.close(), loop).result(10)


def test_a_cancelled_task_stays_cancelled(server):
    server.otherwise = hang

    async def use():
        async with AsyncClient(server.target) as client:
            task = asyncio.create_task(client.rerank("q", ["a"]))
            await asyncio.to_thread(server.called.wait, 10)
            task.cancel()
            await asyncio.wait([task])
            return task.cancelled()

    assert asyncio.run(use())


def test_an_async_stream_that_is_left_is_cancelled_at_the_server(server):
    """The same without `async with`: the loop closes what the caller dropped."""

    async def use():
        async with AsyncClient(server.target) as client:
            async for result in client.stream_rerank("q", ["a", "b"]):
                return result.index
            return None

    assert asyncio.run(use()) == 1


def test_many_calls_share_one_async_client(server):
    async def use():
        async with AsyncClient(server.target) as client:
            return await asyncio.gather(*(client.rerank("q", ["a"] * n) for n in range(1, 50)))

    assert [len(response.results) for response in asyncio.run(use())] == list(range(1, 50))
