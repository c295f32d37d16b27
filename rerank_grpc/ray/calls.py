"""One call in a replica: its grpc.ServicerContext over Serve's own, and the requests that it streams."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple, NoReturn

import grpc

from rerank_grpc.ray.ingress import DEADLINE_KEY, METHOD_KEY, OWN_KEYS, PROXIED_KEY

log = logging.getLogger(__name__)


class Aborted(Exception):
    """The call has its status; the replica returns nothing, because Serve drops trailers of what raises."""


class CallerLeft(grpc.RpcError):
    """The wait for a request has ended with the call."""


class ReplyBytes(NamedTuple):
    """A reply that is serialized already, which Serve asks to serialize itself."""

    content: bytes = b""

    def SerializeToString(self) -> bytes:
        """Returns the reply."""
        return self.content


class ReplicaContext:
    """A grpc.ServicerContext as far as handlers use it; any thread may call every method.

    Serve's context has neither the deadline nor callbacks: the ingress sends the first along, and `end` calls
    the others. `cancel` ends the RPC, on Serve's own loop.

    Attributes:
        path: the method that is called, such as /rerank.v1.RerankService/Rerank.
        proxied: whether the call came through Serve's own proxy.
    """

    def __init__(self, serve_context: Any, cancel: Callable[[], object] = lambda: None) -> None:
        self._serve = serve_context
        self._cancel = cancel
        self._lock = threading.Lock()
        self._over = False
        self._callbacks: list[Callable[[], object]] = []
        metadata = tuple(serve_context.invocation_metadata() or ())
        facts = dict(pair for pair in metadata if pair[0] in OWN_KEYS)
        self._metadata = tuple(pair for pair in metadata if pair[0] not in OWN_KEYS)
        self.path = str(facts.get(METHOD_KEY, ""))
        self.proxied = PROXIED_KEY in facts
        self._deadline = float(facts[DEADLINE_KEY]) if DEADLINE_KEY in facts else None

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Returns what the caller has sent."""
        return self._metadata

    def peer(self) -> str:
        """Returns the caller's address, which is the proxy's."""
        return str(self._serve.peer())

    def time_remaining(self) -> float | None:
        """Returns the seconds left to the deadline, never below zero; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.time())

    def is_active(self) -> bool:
        """Tells whether the RPC goes on."""
        return not self._over

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Has a function called when the RPC ends; False where it has ended."""
        with self._lock:
            if self._over:
                return False
            self._callbacks.append(callback)
            return True

    def set_trailing_metadata(self, metadata: Any) -> None:
        """Sets the trailers."""
        self._serve.set_trailing_metadata(list(metadata))

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """Sets the status; raises Aborted."""
        self._serve.set_code(code)
        self._serve.set_details(details)
        raise Aborted

    def cancel(self) -> None:
        """Ends the RPC, which its caller sees cancelled."""
        self._cancel()

    def end(self) -> None:
        """Calls the callbacks, once, because the RPC has ended or its caller has left."""
        with self._lock:
            self._over, callbacks = True, self._callbacks
            self._callbacks = []
        for callback in callbacks:
            try:
                callback()
            except Exception:  # the others free the queue, whatever one does
                log.exception("a callback of %s failed", self.path)


class StreamedRequests:
    """The requests of a call that streams them, for a thread; `next` waits for the loop to bring one."""

    def __init__(
        self, requests: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop, context: ReplicaContext
    ) -> None:
        self._requests = requests
        self._loop = loop
        self._context = context
        self._waited: Future[bytes | None] | None = None
        # One for the whole call: a stream may bring any number of requests.
        context.add_callback(self._leave)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        found = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
        self._waited = found
        if not self._context.is_active():  # asked after the wait is known, so that one of both ends it
            found.cancel()
        try:
            message = found.result()
        except CancelledError:
            raise CallerLeft from None
        if message is None:
            raise StopIteration
        return message

    def _leave(self) -> None:
        if self._waited is not None:
            self._waited.cancel()

    async def _next(self) -> bytes | None:
        return await anext(self._requests, None)
