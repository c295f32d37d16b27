"""A scripted server, and both clients behind one synchronous face."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from rerank_grpc.client import AsyncClient, AsyncRerankStream, Client, here, unavailable
from tests.client.scripted_server import ScriptedServer
from tests.support import WAIT, wait_for

ROOT = Path(__file__).parents[2]
CLIENTS = ("Client", "AsyncClient")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the processes that a test starts find the package."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the looks at a server that does not answer time enough, also where the machine is busy."""
    monkeypatch.setattr(unavailable, "PROBE_SECONDS", WAIT)
    monkeypatch.setattr(here, "PROBE_SECONDS", WAIT)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(params=CLIENTS)
def connect(request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop) -> Iterator[Callable[..., Any]]:
    """Makes clients of one kind, closed after the test; every test here runs with both kinds."""
    with ExitStack() as stack:

        def connect(target: str, **arguments: Any) -> Any:
            if request.param == "Client":
                return stack.enter_context(Client(target, **arguments))
            return stack.enter_context(Blocking(AsyncClient(target, **arguments), loop))

        yield connect


@pytest.fixture
def client(connect: Callable[..., Any], server: ScriptedServer) -> Any:
    return connect(server.target)


def connect_both(client: Any, first: ScriptedServer) -> None:
    """Calls until a client of two servers is connected to both: before that, one of them has all calls."""
    before, made = len(first.calls), count(1)

    def reaches_both() -> bool:
        assert len(client.rerank("q", ["to connect"]).results) == 1
        return next(made) > len(first.calls) - before > 0

    wait_for(reaches_both)


class Blocking:
    """An AsyncClient used from threads: each call runs on the loop and is waited for."""

    def __init__(self, client: AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name in ("stream", "stream_rerank"):
                return BlockingStream(method(*args, **kwargs), self._loop)
            return wait(self._loop, method(*args, **kwargs))

        return call

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        wait(self._loop, self._client.close())


class BlockingStream:
    """An AsyncRerankStream read from a thread."""

    def __init__(self, stream: AsyncRerankStream, loop: asyncio.AbstractEventLoop) -> None:
        self._stream = stream
        self._loop = loop

    @property
    def summary(self) -> Any:
        return self._stream.summary

    def close(self) -> None:
        wait(self._loop, self._stream.aclose())

    def __iter__(self) -> BlockingStream:
        return self

    def __next__(self) -> Any:
        async def one() -> tuple[Any, ...]:
            # A tuple, because StopIteration cannot come out of a future.
            async for result in self._stream:
                return (result,)
            return ()

        for result in wait(self._loop, one()):
            return result
        raise StopIteration

    def __enter__(self) -> BlockingStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait(loop: asyncio.AbstractEventLoop, coroutine: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()
