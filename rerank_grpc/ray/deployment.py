"""The replica: the server's reranker, registry and services, behind methods that Serve calls."""

from __future__ import annotations

import asyncio
import logging
import platform
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from time import monotonic
from typing import Any, NamedTuple

import torch

from rerank_grpc import __version__
from rerank_grpc.access.accepted import AccessList
from rerank_grpc.config.allowance import provide_threads
from rerank_grpc.config.reading import read_settings
from rerank_grpc.config.settings import ServerSettings, token_count
from rerank_grpc.errors import ConfigurationError
from rerank_grpc.limits import LIMITS
from rerank_grpc.ray.autoscaling import BUSY_SHARE, QUEUED_SECONDS, queued_seconds
from rerank_grpc.ray.calls import Aborted, ReplicaContext, ReplyBytes, StreamedRequests
from rerank_grpc.ray.ingress import methods
from rerank_grpc.registry.loading import Loader
from rerank_grpc.reranker import build_reranker
from rerank_grpc.server.guard import Edge, Guard
from rerank_grpc.server.interceptors import AccessInterceptor
from rerank_grpc.server.lanes import Handler
from rerank_grpc.server.patience import Patience
from rerank_grpc.server.probes.health import (
    HEALTH_SERVICE,
    HealthService,
    reflection_services,
)
from rerank_grpc.server.server import call_services
from rerank_grpc.telemetry.call_log import log_call

log = logging.getLogger(__name__)

# Serve passes a replica at most this many calls for each that the gate admits: the gate is to refuse the
# others, because its refusals say when to come back.
CALLS_FOR_EACH_ADMITTED = 4
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
# What every record of a log has; the others are fields of its line.
COMMON = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "event", "kind"))


class CallDetails(NamedTuple):
    """A grpc.HandlerCallDetails."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...]


class RerankReplica:
    """Serves all methods of `ingress.methods`, by the default names; built in the replica's process.

    `flags` are the server's options by name, as from a command line; tokens come from the environment of the
    process. Raises OptionError for a bad option, ModelLoadError where the default model cannot be served, and
    ConfigurationError where `release`, of the package that built the application, is not this node's.
    """

    def __init__(
        self,
        flags: Mapping[str, str | list[str]],
        loader: Loader | None = None,
        release: str = __version__,
    ) -> None:
        _check_release(release)
        threads, _ = provide_threads()  # for child processes and tokenizers: torch has been imported
        torch.set_num_threads(min(threads, torch.get_num_threads()))
        settings = read_settings(flags)
        _log_to_stderr(settings.log_level)
        if not token_count(settings):
            log.warning("any caller is served: set RERANK_TOKENS where Ray is started, or token-file")
        self._hung = self._leaving = False
        self._edge = _edge(settings)
        self._patience = Patience()
        self._patience.start()
        self._reranker = build_reranker(settings, loader, on_hang=self._on_hang)
        self._registry = self._reranker.registry
        services = call_services(
            self._reranker, self._patience, lambda: self._leaving, self._edge, max_calls=settings.max_calls
        )
        names = [service.name for service in services]
        health = HealthService(names, lambda: self._registry.serving)
        services.append(health.service(self._patience, self._edge, "main"))
        services += reflection_services([*names, HEALTH_SERVICE], self._patience, self._edge, "main")
        self._handlers = {
            f"/{service.name}/{method}": handler
            for service in services
            for method, handler in service.handlers.items()
        }
        names_of = dict(pair for service in services for pair in service.methods())
        self._access = AccessInterceptor(self._edge, names_of) if self._edge.guard else None
        self._busy, self._measured = 0.0, monotonic()
        self._registry.start()
        self._registry.wait_until_loaded()

    def _on_hang(self) -> None:
        self._hung = True

    async def answer(self, request: Any, grpc_context: Any) -> ReplyBytes:
        """Answers a method with one reply; takes a serialized message, or a stream of them."""
        with _ended(grpc_context) as context:
            run, pool, requests = self._prepare(request, context)
            try:
                return ReplyBytes(await _run_on(pool, lambda: run(requests, context)))
            except Aborted:
                return ReplyBytes()

    async def stream(self, request: Any, grpc_context: Any) -> AsyncIterator[ReplyBytes]:
        """Answers a method with a stream of replies."""
        with _ended(grpc_context) as context:
            run, pool, requests = self._prepare(request, context)
            replies = _Replies(lambda: run(requests, context))
            try:
                while (reply := await _run_on(pool, replies.next)) is not None:
                    yield ReplyBytes(reply)
            except Aborted:
                if context.proxied:
                    # Serve's proxy sends the status of a stream that has sent nothing only with a message.
                    yield ReplyBytes()
            finally:
                context.end()
                pool.submit(replies.close)

    def _prepare(self, request: Any, context: ReplicaContext) -> tuple[Callable[..., Any], Executor, Any]:
        """Finds the handler's function, the threads of its lane, and its requests, one after the other."""
        handler: Handler | None = self._handlers[context.path]
        if self._access is not None:
            details: Any = CallDetails(context.path, context.invocation_metadata())
            handler = self._access.intercept_service(lambda _: self._handlers[context.path], details)
        run: Any = handler and (handler.stream_unary or handler.stream_stream)
        if isinstance(request, bytes):
            return run, run.experimental_thread_pool, iter((request,))
        requests = StreamedRequests(aiter(request), asyncio.get_running_loop(), context)
        return run, run.experimental_thread_pool, requests

    async def __call__(self, _request: Any) -> str:
        """Tells callers of Serve's HTTP port where the service is."""
        return "rerank.v1 is served over gRPC; for JSON run: rerank-grpc rest --target HOST:PORT\n"

    def check_health(self) -> None:
        """Raises RuntimeError where only a new process helps, or no call of the default model is answered."""
        if self._hung:
            raise RuntimeError("the device of a model hangs")
        if not self._registry.serving:
            raise RuntimeError("the default model cannot be called")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tells the seconds of work that wait, and the busy share of the device since it was last asked."""
        snapshots = self._registry.snapshots()
        found = [self._registry.health(each.name) for each in snapshots]
        now, busy = monotonic(), sum(each.busy_seconds for each in snapshots)
        share = (busy - self._busy) / max(now - self._measured, 1e-3)
        self._busy, self._measured = busy, now
        waiting = queued_seconds((each.queue_tokens, each.tokens_per_second) for each in found)
        return {QUEUED_SECONDS: waiting, BUSY_SHARE: min(1.0, max(0.0, share))}

    def __del__(self) -> None:
        """Ends the engines; Serve calls it when all calls have been answered."""
        self._leaving = True
        if hasattr(self, "_registry"):
            self._registry.close()
        if hasattr(self, "_patience"):
            self._patience.close()


# Serve calls the method of a call's last name; the ingress tells the service.
for _method in methods():
    setattr(
        RerankReplica, _method.name, RerankReplica.stream if _method.gives_stream else RerankReplica.answer
    )


class _Replies:
    """The replies of a stream, one at a time, for threads that take turns."""

    def __init__(self, begin: Callable[[], Iterator[bytes]]) -> None:
        self._begin = begin
        self._lock = threading.Lock()
        self._replies: Iterator[bytes] | None = None

    def next(self) -> bytes | None:
        """Makes the next reply; None after the last."""
        with self._lock:
            if self._replies is None:
                self._replies = self._begin()
            return next(self._replies, None)

    def close(self) -> None:
        """Ends a stream whose caller has left, after the reply that is in the making."""
        with self._lock:
            close = getattr(self._replies, "close", None)
            if close is not None:
                close()


@contextmanager
def _ended(grpc_context: Any) -> Iterator[ReplicaContext]:
    """Makes a call's context, and ends it, also where Serve cancels it because its caller has left."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    context = ReplicaContext(grpc_context, lambda: loop.call_soon_threadsafe(task.cancel))
    try:
        yield context
    finally:
        context.end()


async def _run_on(pool: Executor, function: Callable[[], Any]) -> Any:
    """Runs a function on a thread; where the caller leaves, it runs on, and its context tells it to end.

    The pool's own future is not used: that of a full one is a dummy.
    """
    done: Future[Any] = Future()

    def work() -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)

    pool.submit(work)
    return await asyncio.wrap_future(done)


def _check_release(release: str) -> None:
    if release != __version__:
        raise ConfigurationError(
            f"rerank-grpc {__version__} is on the node {platform.node()}, and {release} built the "
            "application: install the same release on every node"
        )


def _edge(settings: ServerSettings) -> Edge:
    if not token_count(settings):
        return Edge((log_call,))
    accepted = AccessList(settings.access_tokens, settings.token_file)
    accepted.watch()
    return Edge((log_call,), Guard(accepted, open_reflection=settings.reflection == "open"))


class FieldsFormatter(logging.Formatter):
    """Writes a line's fields behind it."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)  # which adds attributes, so it comes first
        fields = ((key, value) for key, value in vars(record).items() if key not in COMMON)
        return " ".join([line, *(f"{key}={value}" for key, value in fields if value is not None)])


def _log_to_stderr(level: str) -> None:
    """Sends the package's log to the process' own stderr, which Ray keeps; sys.stderr is a log of Serve's."""
    logger = logging.getLogger("rerank_grpc")
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler(sys.__stderr__)
        handler.setFormatter(FieldsFormatter(LOG_FORMAT))
        logger.addHandler(handler)
        logger.propagate = False


def most_ongoing(settings: ServerSettings) -> int:
    """Tells how many calls Serve may pass to a replica at once."""
    return CALLS_FOR_EACH_ADMITTED * max(settings.max_calls, LIMITS.streams)
