"""The bytes of all bodies inside at once: what is too much is refused before it is read on."""

import asyncio
import contextlib

import pytest

from rerank_grpc.errors import QueueFull
from rerank_grpc.rest import app, body
from rerank_grpc.server.server import RerankServer
from tests.rest.support import LoopClock, get, post, rest_server
from tests.rest.test_rest_connections import BODY, connect, held, request  # noqa: F401
from tests.support import HeldRunner

HEAD = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
LONG = {"query": "q", "documents": ["word " * 150]}


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODIES_BYTES", 1_000)


def test_bodies_count_until_their_calls_are_answered(held: tuple[HeldRunner, RerankServer]) -> None:  # noqa: F811
    runner, server = held
    with rest_server(server.port) as port:
        with connect(port, request(LONG, "Connection: close")) as first:
            runner.await_batch()
            for path in ("/v1/rerank", "/tei/rerank"):
                reply = post(port, path, LONG)
                assert (reply.status, reply.headers["retry-after"]) == (429, "1")
            assert get(port, "/health").status == 200
            runner.let_all()
            assert first.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert post(port, "/v1/rerank", LONG).status == 200


def test_what_is_too_much_is_refused_before_the_rest_comes(scripted: RerankServer) -> None:
    head = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    with rest_server(scripted.port) as port:
        for _ in range(3):
            with connect(port, head + b" " * 1_001) as connection:
                answer = connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"retry-after: 1\r\n" in answer
        assert post(port, "/v1/rerank", BODY).status == 200


@pytest.mark.parametrize("body", [b"nonsense", b'{"query": 1}', b""])
def test_a_refused_body_counts_no_longer(scripted: RerankServer, body: bytes) -> None:
    with rest_server(scripted.port) as port:
        for _ in range(3):
            assert post(port, "/v1/rerank", body.ljust(900)).status == 400
        assert post(port, "/v1/rerank", LONG).status == 200


def test_stalled_bodies_lose_their_room_to_a_new_one(
    scripted: RerankServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "SAFE_SECONDS", 0.0)
    LoopClock(monkeypatch)  # so that no body goes by its time
    stalled = HEAD + b"Content-Length: 310\r\n\r\n" + b" " * 309
    with rest_server(scripted.port) as port, contextlib.ExitStack() as ends:
        held = [ends.enter_context(connect(port, stalled)) for _ in range(11)]
        assert post(port, "/v1/rerank", LONG).status == 200
        for connection in held[:8]:  # the last three have room beside each other
            answer = connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"retry-after: 1\r\n" in answer
        assert post(port, "/v1/rerank", BODY).status == 200


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_body_is_safe_for_a_second_and_then_the_oldest_is_given_up() -> None:
    async def run() -> None:
        clock, ended = Clock(), list[str]()
        budget = body.BodyBudget(100, clock=clock)

        async def stalled(name: str, count: int) -> None:
            with contextlib.suppress(QueueFull), budget.charging() as charge:
                try:
                    async with charge.arriving():
                        charge.take(count)
                        await asyncio.Event().wait()
                finally:
                    ended.append(name)

        async def given_up(*names: str) -> None:
            for _ in range(10):  # turns of the loop, in which a task that was ended leaves
                await asyncio.sleep(0)
            assert ended == [*names]

        def take(count: int) -> None:
            with budget.charging() as charge:
                charge.take(count)

        waiting = []
        for clock.now, name in enumerate(("first", "second")):
            waiting.append(asyncio.create_task(stalled(name, 50)))
            await asyncio.sleep(0)
        clock.now = 0.9
        with pytest.raises(QueueFull):
            take(1)
        await given_up()
        clock.now = 1.0
        take(50)
        await given_up("first")
        with pytest.raises(QueueFull):
            take(51)
        clock.now = 2.0
        take(100)
        await given_up("first", "second")
        take(100)
        await asyncio.gather(*waiting)

    asyncio.run(run())


def test_a_body_that_is_complete_or_the_oldest_itself_gives_nothing_up() -> None:
    async def run() -> None:
        clock = Clock()
        budget = body.BodyBudget(100, clock=clock)
        with budget.charging() as complete, budget.charging() as oldest, budget.charging() as newer:
            async with complete.arriving():
                complete.take(40)
            async with oldest.arriving(), newer.arriving():
                oldest.take(30)
                newer.take(30)
                clock.now = 60.0
                with pytest.raises(QueueFull):
                    oldest.take(1)
            assert (complete.taken, oldest.taken, newer.taken) == (40, 30, 30)

    asyncio.run(run())


def test_a_body_that_ends_as_it_is_given_up_is_refused() -> None:
    async def run() -> None:
        clock = Clock()
        budget = body.BodyBudget(100, clock=clock)
        with budget.charging() as late, budget.charging() as new:
            arriving = late.arriving()
            await arriving.__aenter__()
            late.take(100)
            clock.now = 1.0
            new.take(100)
            with pytest.raises(QueueFull):
                await arriving.__aexit__(None, None, None)
            assert (late.taken, new.taken) == (0, 100)

    asyncio.run(run())
