"""The clients of an adapter: made when asked, one for each loop, closed, copied and pickled."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rerank_grpc.client import AsyncClient, Client, InvalidRequest, ServerUnavailable, UnknownModel
from rerank_grpc.integrations.connection import ClosesClients, Connection, split
from rerank_grpc.integrations.fields import RerankFields
from tests.support import serving

QUERY = "What do pandas eat?"
TEXTS = ["Paris is the capital of France.", "Bamboo is what pandas eat."]


@pytest.fixture(scope="module")
def target():
    with serving() as service:
        yield f"127.0.0.1:{service.port}"


class Adapter(ClosesClients):
    """The least adapter: a connection that can be closed."""

    def __init__(self, connection):
        self._connection = connection


def indices(results) -> list[int]:
    return [result.index for result in results]


def test_results_are_best_first_in_threads_and_in_one_loop_after_another(target):
    connection = Connection(target)
    with ThreadPoolExecutor(4) as threads:
        for results in threads.map(lambda _: connection.rerank(QUERY, TEXTS), range(8)):
            assert indices(results) == [1, 0]
    for _ in range(3):
        assert indices(asyncio.run(connection.arerank(QUERY, TEXTS, top_n=1))) == [1]
    connection.close()


def test_several_loops_use_one_connection_at_once(target):
    connection = Connection(target)
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(asyncio.run, connection.arerank(QUERY, TEXTS)) for _ in range(8)]
        assert [indices(call.result()) for call in calls] == [[1, 0]] * 8


def test_no_texts_are_no_results_without_a_call():
    connection = Connection("127.0.0.1:1", retries=0)
    assert connection.rerank(QUERY, []) == asyncio.run(connection.arerank(QUERY, [])) == ()
    with pytest.raises(ServerUnavailable):
        connection.rerank(QUERY, TEXTS)


def test_a_closed_adapter_connects_again(target):
    with Adapter(Connection(target)) as adapter:
        assert indices(adapter._connection.rerank(QUERY, TEXTS)) == [1, 0]
    assert indices(adapter._connection.rerank(QUERY, TEXTS)) == [1, 0]
    adapter.close()

    async def twice() -> list[list[int]]:
        async with adapter:
            first = await adapter._connection.arerank(QUERY, TEXTS)
        second = await adapter._connection.arerank(QUERY, TEXTS)
        await adapter.aclose()
        return [indices(first), indices(second)]

    assert asyncio.run(twice()) == [[1, 0], [1, 0]]


def test_a_client_that_was_given_stays_open(target):
    with Client(target) as client:
        adapter = Adapter(Connection(client=client))
        assert indices(adapter._connection.rerank(QUERY, TEXTS)) == [1, 0]
        assert indices(asyncio.run(adapter._connection.arerank(QUERY, TEXTS))) == [1, 0]
        adapter.close()
        assert client.serving()


def test_an_asynchronous_client_alone_serves_no_call_without_await(target):
    async def ask() -> list[int]:
        async with AsyncClient(target) as client:
            connection = Connection(async_client=client)
            with pytest.raises(TypeError, match="needs a Client"):
                connection.rerank(QUERY, TEXTS)
            results = await connection.arerank(QUERY, TEXTS)
            await connection.aclose()
            assert await client.serving()
            return indices(results)

    assert asyncio.run(ask()) == [1, 0]


def test_a_pickled_connection_takes_its_address_along(target):
    connection = Connection(target, token="secret")
    connection.rerank(QUERY, TEXTS)
    again = pickle.loads(pickle.dumps(connection))
    assert indices(again.rerank(QUERY, TEXTS)) == [1, 0]
    assert copy.deepcopy(connection) is connection
    assert "secret" not in repr(again)
    for each in (connection, again):
        each.close()


def test_a_connection_with_a_client_refuses_to_be_pickled(target):
    with Client(target) as client, pytest.raises(TypeError, match="target="):
        pickle.dumps(Connection(client=client))


def test_an_address_beside_a_client_is_refused(target):
    with Client(target) as client:
        with pytest.raises(ValueError, match="target, token: a client has its own"):
            Connection(target, client, token="secret")
        with pytest.raises(TypeError, match="async_client: a AsyncClient, not Client"):
            Connection(async_client=client)  # type: ignore[arg-type]


def test_options_are_told_apart_and_an_unknown_one_is_named():
    of_client, of_call = split({"ca": "ca.pem", "instruction": "Find.", "timeout": 3.0})
    assert (of_client, of_call) == ({"ca": "ca.pem"}, {"instruction": "Find.", "timeout": 3.0})
    wrong: Any = {"topn": 3}
    with pytest.raises(TypeError, match="topn: no such option; there are ca, "):
        split(wrong)


def test_errors_of_the_client_pass_through(target):
    connection = Connection(target)
    with pytest.raises(UnknownModel, match="no-such-model"):
        connection.rerank(QUERY, TEXTS, model="no-such-model")
    with pytest.raises(InvalidRequest):
        asyncio.run(connection.arerank("", TEXTS))
    connection.close()


def test_fields_ask_what_they_say_and_hide_the_token(target):
    with RerankFields(target=target, token="secret") as fields:
        fields.top_n = 1
        assert indices(fields._connection.rerank(QUERY, TEXTS, **fields._arguments())) == [1]
        assert "secret" not in f"{fields!r} {fields.model_dump()}"
        with pytest.raises(ValueError, match="frozen"):
            fields.target = "elsewhere"
    with pytest.raises(ValueError, match="topn"):
        RerankFields(topn=1)  # type: ignore[call-arg]


def test_importing_the_package_of_adapters_imports_no_framework():
    code = "import sys, rerank_grpc.integrations.connection; print({'pydantic', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
