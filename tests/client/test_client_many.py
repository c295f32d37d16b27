"""rerank_many: many jobs, so many at once, their responses in the caller's order."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from itertools import count
from typing import Any

import grpc
import pytest

from rerank_grpc.client import AsyncClient, Client, InternalError, Priority, QueueFull, Reason, RerankResponse
from rerank_grpc.v1 import rerank_pb2 as pb
from tests.client.scripted_server import ScriptedServer, fail, hang, results, scored
from tests.support import WAIT, serving, wait_for

KINDS = pytest.mark.parametrize("kind", [Client, AsyncClient])
broken = fail(grpc.StatusCode.INTERNAL, "broken", reason=Reason.INTERNAL)


def outcomes(kind, target, jobs, first=None, keep_errors=False, **options):
    """Reads the outcomes of jobs, or so many of them, by one kind of client; an error raised comes last."""
    found: list[Any] = []

    def read():
        with Client(target) as client, client.rerank_many(jobs, **options) as answers:
            for answer in answers.outcomes() if keep_errors else answers:
                found.append(answer)
                if len(found) == first:
                    return

    async def read_async():
        async with AsyncClient(target) as client, client.rerank_many(jobs, **options) as answers:
            async for answer in answers.outcomes() if keep_errors else answers:
                found.append(answer)
                if len(found) == first:
                    return

    try:
        read() if kind is Client else asyncio.run(read_async())
    except Exception as error:
        found.append(error)
    return found


def failing_at(place):
    """Fails the job whose query is its place."""

    def step(request, context):
        return broken(request, context) if request.query == str(place) else scored(request)

    return step


@KINDS
def test_responses_come_in_the_order_of_the_jobs_whatever_ends_first(kind, server):
    turns = Counter[str]()
    both = threading.Barrier(2)

    def step(request, _context):
        turns[request.query] += 1
        if request.query in ("0", "3"):  # the first job ends after the fourth has begun
            both.wait(WAIT)
        return pb.RerankResponse(results=results(request), model=request.query)

    server.otherwise = step
    told = []
    jobs = [(str(number), ["a", "b"]) for number in range(20)]
    answers = outcomes(kind, server.target, jobs, concurrency=4, progress=lambda *done: told.append(done))
    assert [answer.summary.model for answer in answers] == [query for query, _ in jobs]
    assert told == [(done, 20) for done in range(1, 21)]
    assert set(turns.values()) == {1}


@KINDS
def test_no_more_calls_are_inside_than_allowed_and_the_jobs_are_read_a_few_ahead(kind, server):
    inside, most, lock = 0, 0, threading.Lock()
    read = []

    def step(request, _context):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        try:
            return scored(request)
        finally:
            with lock:
                inside -= 1

    def endless():
        for number in count():
            read.append(number)
            yield "q", ["a"]

    server.otherwise = step
    assert len(outcomes(kind, server.target, endless(), first=50, concurrency=3)) == 50
    assert most <= 3
    assert len(read) <= 50 + 3 * 4


@KINDS
def test_what_came_before_a_failed_job_is_given_and_then_its_error(kind, server):
    server.otherwise = failing_at(5)
    jobs = ((str(number), ["a"]) for number in range(1_000))
    *before, error = outcomes(kind, server.target, jobs, concurrency=2)
    assert len(before) == 5
    assert isinstance(error, InternalError)
    assert error.__notes__ == ["in jobs[5]"]
    assert len(server.calls) < 30, "jobs after it are not begun"


@KINDS
def test_an_error_may_stand_in_its_jobs_place(kind, server):
    server.otherwise = failing_at(5)
    jobs = [(str(number), ["a"]) for number in range(10)]
    answers = outcomes(kind, server.target, jobs, keep_errors=True)
    assert [place for place, answer in enumerate(answers) if isinstance(answer, InternalError)] == [5]
    assert sum(isinstance(answer, RerankResponse) for answer in answers) == 9


@KINDS
@pytest.mark.parametrize("keep", [False, True])
def test_an_error_of_the_callers_own_loses_no_response_before_it(kind, server, keep):
    def jobs():
        yield "a", ["a"]
        yield "b", ["b"]
        raise OSError("the disk is gone")

    *before, error = outcomes(kind, server.target, jobs(), keep_errors=keep)
    assert len(before) == 2
    assert isinstance(error, OSError)
    *before, error = outcomes(kind, server.target, [("a", ["a"]), "b"], keep_errors=keep)
    assert len(before) == 1
    assert str(error) == "jobs: pairs of a query and its documents, not str"


@KINDS
def test_an_error_of_the_callers_iterator_is_raised_also_where_it_is_of_our_kind(kind, server):
    class Jobs:
        """Raises again and again, as an iterator may that is no generator."""

        def __iter__(self):
            return self

        def __next__(self):
            raise QueueFull("of another client")

    (error,) = outcomes(kind, server.target, Jobs(), keep_errors=True)
    assert isinstance(error, QueueFull)
    assert error.__notes__ == ["in jobs[0]"]


@KINDS
def test_a_full_server_slows_the_jobs_down_and_fails_none(kind, server):
    """Ten refusals of one job: many more than `retries` allows."""
    server.script.extend(
        [fail(grpc.StatusCode.RESOURCE_EXHAUSTED, reason=Reason.QUEUE_FULL, retry_after=0.01)] * 10
    )
    assert len(outcomes(kind, server.target, [("q", ["a"])] * 3, concurrency=1)) == 3
    assert len(server.calls) == 13


@KINDS
def test_a_job_waits_no_longer_than_its_deadline(kind, server):
    server.otherwise = fail(grpc.StatusCode.RESOURCE_EXHAUSTED, reason=Reason.QUEUE_FULL, retry_after=0.2)
    (error,) = outcomes(kind, server.target, [("q", ["a"])], timeout=5)
    assert isinstance(error, QueueFull)


@KINDS
@pytest.mark.parametrize("leave", ["close", "client", "collected"])
def test_leaving_ends_the_calls_inside(kind, server: ScriptedServer, leave):
    ended = threading.Event()

    def step(request, context):
        if request.query == "first":
            return scored(request)
        context.add_callback(ended.set)
        return hang(request, context)

    server.otherwise = step
    jobs = [("first", ["a"]), *[("later", ["a"])] * 5]

    def read():
        client = Client(server.target)
        answers = client.rerank_many(jobs, timeout=60)
        next(answers)
        wait_for(lambda: len(server.calls) == 6)
        {"close": answers.close, "client": client.close, "collected": lambda: None}[leave]()
        return client

    async def read_async():
        client = AsyncClient(server.target)
        answers = client.rerank_many(jobs, timeout=60)
        await anext(answers)
        await asyncio.to_thread(wait_for, lambda: len(server.calls) == 6)
        if leave == "close":
            await answers.aclose()
        else:
            await client.close()
        return client

    kept = read() if kind is Client else asyncio.run(read_async())
    gc.collect()
    assert ended.wait(WAIT)
    del kept


@KINDS
def test_many_jobs_are_background_work_unless_the_caller_says_otherwise(kind, server):
    outcomes(kind, server.target, [("q", ["a"])])
    outcomes(kind, server.target, [("q", ["a"])], priority="interactive", model="m", top_n=3)
    assert server.calls[0].request.priority == pb.PRIORITY_BATCH
    assert server.calls[1].request.priority in (pb.PRIORITY_UNSPECIFIED, pb.PRIORITY_INTERACTIVE)
    assert (server.calls[1].request.model, server.calls[1].request.top_n) == ("m", 3)
    assert Priority.BATCH.name.lower() == "batch"


@pytest.mark.parametrize(("concurrency", "error"), [(0, ValueError), (257, ValueError), ("8", TypeError)])
@KINDS
def test_a_bad_concurrency_is_refused(kind, concurrency, error):
    with pytest.raises(error, match=r"^concurrency: "):
        kind("localhost:1").rerank_many([], concurrency=concurrency)


def test_jobs_may_come_from_an_async_generator(server):
    async def jobs():
        for number in range(5):
            await asyncio.sleep(0)
            yield str(number), ["a"]

    assert len(outcomes(AsyncClient, server.target, jobs())) == 5


def test_an_async_source_may_wait_for_a_response_before_it_gives_the_next_job(server):
    async def read():
        answered = asyncio.Queue[RerankResponse]()

        async def jobs():
            for number in range(3):
                yield str(number), ["a"]
                await answered.get()

        async with AsyncClient(server.target) as client, client.rerank_many(jobs()) as answers:
            count = 0
            async for answer in answers:
                count += 1
                answered.put_nowait(answer)
            return count

    async def bounded():
        async with asyncio.timeout(20):
            return await read()

    assert asyncio.run(bounded()) == 3


def test_an_async_source_is_closed_where_its_responses_are_left(server):
    closed = []

    async def jobs():
        try:
            for number in count():
                yield str(number), ["a"]
        finally:
            closed.append(True)

    assert len(outcomes(AsyncClient, server.target, jobs(), first=3)) == 3
    assert closed == [True]


@KINDS
def test_the_service_answers_many_jobs_as_it_answers_each(kind):
    with serving() as service:
        target = f"127.0.0.1:{service.port}"
        jobs = [(f"query {number}", [f"text {number}", "another", "a third"]) for number in range(40)]
        answers = outcomes(kind, target, jobs)
        with Client(target) as client:
            assert [answer.results for answer in answers] == [client.rerank(*job).results for job in jobs]
