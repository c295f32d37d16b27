"""Many calls by one request of the caller: so many at once, their responses in the caller's order."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sized,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from queue import SimpleQueue
from typing import Any, Self

import grpc

from rerank_grpc.client.arguments import DocumentLike, check_type
from rerank_grpc.errors import Cancelled, RerankError
from rerank_grpc.types import RerankResponse

# A query and its documents.
Job = tuple[str, Iterable[DocumentLike]]
# Is told how many jobs are done, and of how many; None where the jobs have no length.
Progress = Callable[[int, int | None], object]

CONCURRENCY = 8
MOST_AT_ONCE = 256
# How many jobs are read before their responses are, for each call at once: a slow one holds up no other.
READ_AHEAD = 4


class Scope:
    """Blocking calls that end together; threads share one."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._calls: set[Any] = set()

    def ask(self, method: Any, message: object, **options: object) -> Any:
        """Makes one attempt of a call; raises grpc.RpcError, or Cancelled where the scope has ended."""
        self._check()
        call = method.future(message, **options)
        with self._lock:
            self._calls.add(call)
        if self._ended.is_set():
            call.cancel()
        try:
            return call.result()
        except grpc.FutureCancelledError:
            raise Cancelled("the call was left") from None
        finally:
            with self._lock:
                self._calls.discard(call)

    def sleep(self, seconds: float) -> None:
        """Waits; raises Cancelled where the scope has ended."""
        self._ended.wait(seconds)
        self._check()

    def _check(self) -> None:
        if self._ended.is_set():
            raise Cancelled("the call was left")

    def end(self) -> None:
        """Ends every call and every wait."""
        self._ended.set()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()


class JobRun:
    """The half of both kinds of responses: the settings, checked, and how many jobs are done."""

    def __init__(self, jobs: object, concurrency: int, progress: Progress | None) -> None:
        check_type("concurrency", concurrency, int, "an int")
        if not 1 <= concurrency <= MOST_AT_ONCE:
            raise ValueError(f"concurrency: 1 to {MOST_AT_ONCE}, not {concurrency}")
        self._concurrency = concurrency
        self._progress = progress
        self._keep_errors = False
        self._total = len(jobs) if isinstance(jobs, Sized) else None
        self._done = 0
        self._error_of_jobs: Exception | None = None

    @property
    def _window(self) -> int:
        return self._concurrency * READ_AHEAD

    def _hungry(self, waiting: int, *, more: bool) -> bool:
        """Tells whether jobs are to be begun before a response is given, which may keep its reader busy."""
        return more and waiting <= self._concurrency

    def _count(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _outcome(self, job: Future[RerankResponse] | asyncio.Task[RerankResponse], place: int) -> Any:
        """Returns a job's response, or an error that is kept in its place; raises any other."""
        error = job.exception()
        if error is None:
            return job.result()
        kept = isinstance(error, RerankError) and not isinstance(error, Cancelled)
        if self._keep_errors and kept and error is not self._error_of_jobs:
            return error
        error.add_note(f"in jobs[{place}]")
        raise error


class RerankResponses(JobRun, Iterator[RerankResponse]):
    """The responses of Client.rerank_many in the order of its jobs, to be read once.

    Leaving early without `close` (or `with`) ends the calls when this is collected.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        answer: Callable[[Job, Scope], RerankResponse],
        concurrency: int,
        progress: Progress | None,
    ) -> None:
        super().__init__(jobs, concurrency, progress)
        self._answer = answer
        self._outcomes = self._read(iter(jobs))

    def outcomes(self) -> Iterator[RerankResponse | RerankError]:
        """Yields what is left: a job's response, or its RerankError, after which the others go on."""
        self._keep_errors = True
        return self._outcomes

    def close(self) -> None:
        """Ends the calls in progress; later jobs are not begun."""
        self._outcomes.close()

    def _read(self, jobs: Iterator[Job]) -> Generator[Any, None, None]:
        scope, waiting = Scope(), deque[Future[RerankResponse]]()
        finished = SimpleQueue[object]()
        threads = ThreadPoolExecutor(self._concurrency, thread_name_prefix="rerank_many")
        more, place = True, 0
        try:
            while more or waiting:
                head_is_done = bool(waiting) and waiting[0].done()
                # A job is counted before its response is given, also where it is done but a moment ago.
                while not finished.empty() or (head_is_done and self._done <= place):
                    finished.get()
                    self._count()
                if head_is_done and not self._hungry(len(waiting), more=more):
                    yield self._outcome(waiting.popleft(), place)
                    place += 1
                elif more and len(waiting) < self._window:
                    future = self._begin(jobs, threads, scope)
                    more = future is not None
                    if future is not None:
                        waiting.append(future)
                        future.add_done_callback(finished.put)
                else:
                    finished.get()
                    self._count()
        finally:
            scope.end()
            threads.shutdown(cancel_futures=True)

    def _begin(
        self, jobs: Iterator[Job], threads: ThreadPoolExecutor, scope: Scope
    ) -> Future[RerankResponse] | None:
        """Begins the next job; None where there is none.

        An error of the caller's iterator waits for its turn: the jobs before it are not lost.
        """
        try:
            return threads.submit(self._answer, next(jobs), scope)
        except StopIteration:
            return None
        except Exception as error:
            self._error_of_jobs = self._error_of_jobs or error
            failed = Future[RerankResponse]()
            failed.set_exception(error)
            return failed

    def __next__(self) -> RerankResponse:
        response: RerankResponse = next(self._outcomes)
        return response

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncRerankResponses(JobRun, AsyncIterator[RerankResponse]):
    """The responses of AsyncClient.rerank_many in the order of its jobs, to be read once.

    `async with` or `aclose` ends the calls of one that is left early.
    """

    def __init__(
        self,
        jobs: Iterable[Job] | AsyncIterable[Job],
        answer: Callable[[Job], Awaitable[RerankResponse]],
        concurrency: int,
        progress: Progress | None,
    ) -> None:
        super().__init__(jobs, concurrency, progress)
        self._answer = answer
        self._finished = 0
        self._outcomes = self._read(jobs)

    def outcomes(self) -> AsyncIterator[RerankResponse | RerankError]:
        """Yields what is left: a job's response, or its RerankError, after which the others go on."""
        self._keep_errors = True
        return self._outcomes

    async def aclose(self) -> None:
        """Ends the calls in progress; later jobs are not begun."""
        await self._outcomes.aclose()

    async def _read(self, jobs: Iterable[Job] | AsyncIterable[Job]) -> AsyncGenerator[Any, None]:
        waiting = deque[asyncio.Task[RerankResponse]]()
        woken, space = asyncio.Event(), asyncio.Event()
        reader = asyncio.create_task(self._begin_each(jobs, waiting, woken, space))
        place = 0
        try:
            while waiting or not reader.done():
                woken.clear()
                while self._done < self._finished:
                    self._count()
                if not (waiting and waiting[0].done()):
                    await woken.wait()
                    continue
                if self._hungry(len(waiting), more=not reader.done()):
                    await asyncio.sleep(0)  # the turn in which jobs that are there are begun
                response = waiting.popleft()
                space.set()
                yield self._outcome(response, place)
                place += 1
            await reader
        finally:
            for task in (reader, *waiting):
                task.cancel()
            await asyncio.gather(reader, *waiting, return_exceptions=True)

    async def _begin_each(
        self,
        jobs: Iterable[Job] | AsyncIterable[Job],
        waiting: deque[asyncio.Task[RerankResponse]],
        woken: asyncio.Event,
        space: asyncio.Event,
    ) -> None:
        """Begins each job as it comes, and waits for space where enough of them are begun.

        A task of its own: a source that waits for a response before it gives the next job holds up none.
        """
        room = asyncio.Semaphore(self._concurrency)
        try:
            async with aclosing(_each(jobs)) as coming:
                while answer := await self._next(coming):
                    waiting.append(asyncio.create_task(self._run(answer, room, woken)))
                    while len(waiting) >= self._window:
                        space.clear()
                        await space.wait()
        finally:
            woken.set()

    async def _next(self, jobs: AsyncIterator[Job]) -> Callable[[], Awaitable[RerankResponse]] | None:
        """Reads the next job; None where there is none. An error of the caller's iterator waits its turn."""
        try:
            return partial(self._answer, await anext(jobs))
        except StopAsyncIteration:
            return None
        except Exception as error:
            self._error_of_jobs = self._error_of_jobs or error
            return partial(_fail, error)

    async def _run(
        self, answer: Callable[[], Awaitable[RerankResponse]], room: asyncio.Semaphore, woken: asyncio.Event
    ) -> RerankResponse:
        try:
            async with room:
                return await answer()
        finally:
            self._finished += 1
            woken.set()

    async def __anext__(self) -> RerankResponse:
        response: RerankResponse = await anext(self._outcomes)
        return response

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _each(jobs: Iterable[Job] | AsyncIterable[Job]) -> AsyncGenerator[Job, None]:
    if isinstance(jobs, AsyncIterable):
        async for job in jobs:
            yield job
    else:
        for job in jobs:
            yield job


async def _fail(error: Exception) -> RerankResponse:
    raise error
