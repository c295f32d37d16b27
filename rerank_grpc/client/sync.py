"""The client for threads: a thin shell over :mod:`core`."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import Self, Unpack

import grpc

from rerank_grpc.client import arguments, core, parts
from rerank_grpc.client.arguments import CallOptions, DocumentLike, RerankOptions
from rerank_grpc.client.channel import Replica
from rerank_grpc.client.errors import ServerUnavailable, TlsError, unimplemented
from rerank_grpc.client.many import CONCURRENCY, Job, Progress, RerankResponses, Scope
from rerank_grpc.errors import Cancelled
from rerank_grpc.types import Health, ModelInfo, RerankRequest, RerankResponse, ScoredDocument
from rerank_grpc.v1 import rerank_pb2 as pb


class Client(core.BaseClient["RerankStream"]):
    """Calls a rerank service; threads may share one."""

    def _begin(self) -> None:
        for replica in self._replicas.all:
            replica.open(grpc)

    def rerank(
        self,
        query: str,
        documents: Iterable[DocumentLike],
        model: str | None = None,
        top_n: int | None = None,
        *,
        progress: Progress | None = None,
        **options: Unpack[RerankOptions],
    ) -> RerankResponse:
        """Scores documents against a query, best first.

        A document is a text, a Document or a mapping with "text" and maybe "id".
        `truncation` is "end", "start" or "none", `priority` "interactive" or "batch". More documents than a
        call may have are sent in several, within one deadline, and give the response of one; `progress` is
        called after each with how many documents are scored, and of how many.
        """
        request, call = arguments.rerank_request(query, documents, model, top_n, **options)
        return self._in_parts(request, self._attempts(**call), progress=progress)

    def rerank_many(
        self,
        jobs: Iterable[Job],
        model: str | None = None,
        top_n: int | None = None,
        *,
        concurrency: int = CONCURRENCY,
        progress: Progress | None = None,
        **options: Unpack[RerankOptions],
    ) -> RerankResponses:
        """Yields the response of each job, a query and its documents, in the order of the jobs.

        `jobs` may be a generator: it is read a few jobs ahead. `concurrency` is the number of calls at once,
        1 to 256. Each job has the whole `timeout`, and waits within it as long as the server is full; its
        priority is "batch" unless said otherwise. `progress` is called with how many jobs are done, and of
        how many (None for a generator), by the thread that reads. A job's error is raised in its place, and
        ends the others; `outcomes()` of what is returned yields a RerankError there instead, and goes on.
        """
        batch = arguments.batch_options(options)

        def answer(job: Job, scope: Scope) -> RerankResponse:
            request, call = arguments.rerank_request(*arguments.pair(job), model, top_n, **batch)
            return self._in_parts(request, self._attempts(**call, patient=True), scope)

        return RerankResponses(jobs, answer, concurrency, progress)

    def send(self, request: RerankRequest, **call: Unpack[CallOptions]) -> RerankResponse:
        """Scores the documents of a request in one call: `rerank` without its checks of types."""
        return self._call(core.rerank(request), self._attempts(**call))

    def list_models(self, **call: Unpack[CallOptions]) -> tuple[ModelInfo, ...]:
        """Lists the configured models; the default model is first."""
        return self._call(core.list_models(), self._attempts(**call))

    def health(self, model: str | None = None, **call: Unpack[CallOptions]) -> Health:
        """Tells whether a call for a model would be answered, and how full its queue is."""
        return self._call(core.health(model), self._attempts(**call))

    def serving(self, service: str = "", **call: Unpack[CallOptions]) -> bool:
        """Asks grpc.health.v1, which needs no token, whether the default model can be called.

        `service` names one of the server's services; an unknown one raises UnexpectedStatus.
        """
        return self._call(core.serving(service), self._attempts(**call))

    def wait_until_ready(self, timeout: float | None = None, *, model: str | None = None) -> Health:
        """Waits until a server is there and a call for the model would be answered.

        Raises DeadlineExceeded when the time is over; ModelFailed or TlsError when waiting does not help.
        """
        question = core.health(model)
        attempts = self._attempts(timeout=timeout)
        patience = core.READY_LOOK_SECONDS
        while remaining := attempts.remaining:
            health = None
            try:
                once = self._attempts(timeout=min(remaining, patience))
                health = self._call(question, once, wait_for_ready=not self._replicas.several)
                if core.is_ready(health):
                    return health
            except TlsError:
                raise
            except core.NOT_YET:
                pass
            silent = health is None and patience < remaining
            if silent and (problem := self._replicas.first.inquiry.look(attempts.remaining)):
                raise problem
            patience = math.inf
            time.sleep(min(core.READY_POLL_SECONDS, attempts.remaining))
        raise self._not_ready()

    def close(self) -> None:
        """Ends the client; calls in progress raise Cancelled."""
        self._closed = True
        for replica in self._replicas.all:
            replica.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        rpc: core.Rpc[core.Reply],
        attempts: core.Attempts,
        scope: Scope | None = None,
        *,
        wait_for_ready: bool = False,
    ) -> core.Reply:
        ask, sleep = (scope.ask, scope.sleep) if scope else (core.ask, time.sleep)
        while True:
            self._check_open()
            with self._replicas.turn() as replica:
                try:
                    reply = ask(
                        getattr(replica.stub, rpc.method),
                        rpc.message,
                        timeout=attempts.remaining,
                        metadata=attempts.metadata,
                        wait_for_ready=wait_for_ready,
                    )
                except grpc.RpcError as error:
                    delay = self._delay_after(error, attempts, replica, rpc.method)
                else:
                    self._replicas.answered(replica)
                    return rpc.read(reply)
            sleep(delay)

    def _in_parts(
        self,
        request: RerankRequest,
        attempts: core.Attempts,
        scope: Scope | None = None,
        progress: Progress | None = None,
    ) -> RerankResponse:
        """Answers a request of any size; within a scope, which bounds the calls at once, part by part."""
        several = parts.parts_of(request)
        if len(several) == 1:
            response = self._call(core.rerank(request), attempts, scope)
            parts.PartsTally(request, progress).add(request)
            return response
        for _ in range(1 + parts.ASKED_AGAIN):
            if scope is None:
                replies = self._at_once(several, attempts, parts.PartsTally(request, progress))
            else:
                replies = [self._part(part, attempts, scope) for part in several]
            if parts.of_one_revision(replies):
                return parts.merged(request, several, replies)
        raise parts.changed(replies)

    def _at_once(
        self, several: list[parts.RequestPart], attempts: core.Attempts, scored: parts.PartsTally
    ) -> list[RerankResponse]:
        """Answers parts, a few at once; the first error ends the others."""
        scope = Scope()
        with ThreadPoolExecutor(parts.AT_ONCE) as threads:
            try:
                asked = {threads.submit(self._part, part, attempts, scope): part for part in several}
                for over in as_completed(asked):
                    over.result()
                    scored.add(asked[over].request)
                return [reply.result() for reply in asked]
            finally:
                scope.end()
                threads.shutdown(wait=False, cancel_futures=True)

    def _part(self, part: parts.RequestPart, attempts: core.Attempts, scope: Scope) -> RerankResponse:
        with parts.named(part):
            return self._call(core.rerank(part.request), attempts.of_a_part(), scope)

    def _results(self, message: pb.StreamRerankRequest, attempts: core.Attempts) -> RerankStream:
        return RerankStream(self._stream(message, attempts))

    def _stream(
        self, message: pb.StreamRerankRequest, attempts: core.Attempts
    ) -> Generator[pb.StreamRerankResponse, None, None]:
        while True:
            self._check_open()
            with self._replicas.turn() as replica:
                call = replica.stub.StreamRerank(
                    message, timeout=attempts.remaining, metadata=attempts.metadata
                )
                try:
                    for part in call:
                        attempts.commit()
                        yield part
                    self._replicas.answered(replica)
                    return
                except grpc.RpcError as error:
                    delay = self._delay_after(error, attempts, replica, "StreamRerank")
                finally:
                    # Ends a call that the caller has left; one that is over stays as it is.
                    call.cancel()
            time.sleep(delay)

    def _delay_after(
        self, error: grpc.RpcError, attempts: core.Attempts, replica: Replica, method: str
    ) -> float:
        """Raises Cancelled for a call that `close` has ended."""
        if self._closed and error.code() is grpc.StatusCode.CANCELLED:
            raise Cancelled("the client was closed") from error
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            code = error.code() if method == "Rerank" else self._code_of_rerank(replica, attempts)
            raise unimplemented(replica.target, method, error.details(), code) from error
        try:
            return attempts.delay_after(error, replica)
        except ServerUnavailable as unavailable:
            if attempts.committed:
                raise
            raise replica.inquiry.explain(unavailable, attempts.remaining) from error

    def _code_of_rerank(self, replica: Replica, attempts: core.Attempts) -> grpc.StatusCode | None:
        """Asks for nothing to be reranked, which tells whether the service is there at all."""
        try:
            replica.stub.Rerank(core.NOTHING, timeout=attempts.looking, metadata=attempts.metadata)
        except grpc.RpcError as error:
            return error.code()
        return None


class RerankStream(core.Stream, Iterator[ScoredDocument]):
    """The results of one stream_rerank call, in the order of scoring, to be read once.

    Leaving early without `close` (or `with`) cancels the call when the stream is collected.
    """

    def __init__(self, incoming: Generator[pb.StreamRerankResponse, None, None]) -> None:
        super().__init__()
        self._results = self._read_all(incoming)

    def close(self) -> None:
        """Cancels the call if it is not over."""
        self._results.close()

    def _read_all(
        self, incoming: Generator[pb.StreamRerankResponse, None, None]
    ) -> Generator[ScoredDocument, None, None]:
        with closing(incoming):
            for message in incoming:
                yield from self._read(message)
        self._finish()

    def __next__(self) -> ScoredDocument:
        return next(self._results)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
