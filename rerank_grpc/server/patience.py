"""Bounds on a call's wait for its caller: for the request to come, and for the answer to be read.

grpcio waits for both without a limit, and holds a thread or a message meanwhile.
Calls that send or read nothing make a crowd, as in a SYN flood: a message on an
ordinary network comes within milliseconds of its headers.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

import grpc

from rerank_grpc.errors import Cancelled, describe

log = logging.getLogger(__name__)

# The interval between two looks for late calls, and the delay of a look after a crowd has formed.
LOOK_SECONDS, CROWD_SECONDS = 0.1, 0.005
# A large message may take longer, at this average rate.
BYTES_PER_SECOND = 65_536
# In a crowd, a call that has waited less than this is spared ...
SPARED_SECONDS = 0.25
# ... and less than this on a connection with more calls in the crowd than these.
HOG_CALLS, HOG_SPARED_SECONDS = 8, 0.02
# A message above this size triggers a look.
LARGE_BYTES = 1 << 18


class _Wait(NamedTuple):
    since: float  # in seconds of time.monotonic, like `until`
    until: float
    size: int  # in bytes, which are kept meanwhile


class Waiting:
    """The calls that wait for their callers in one way; any thread may call any method.

    No lock is needed: each change is one operation on a dict, which keeps the order in which calls began to
    wait. `on_crowd` is called when a crowd may have formed; `noun` is the awaited thing, for the log.
    """

    def __init__(
        self,
        noun: str,
        seconds: float,
        *,
        capacity: float = math.inf,
        capacity_bytes: float = math.inf,
        backlog: Callable[[], int] = int,
    ) -> None:
        """Bounds waits to `seconds` and `capacity`; `backlog` counts calls that have not begun to wait."""
        self.noun = noun
        self._seconds = seconds
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._backlog = backlog
        self.on_crowd: Callable[[], None] = lambda: None
        self._waits: dict[grpc.ServicerContext, _Wait] = {}
        self._drain = math.inf, 0.0

    def __len__(self) -> int:
        return len(self._waits)

    def begin(self, context: grpc.ServicerContext, size: int = 0) -> None:
        """Starts a call's wait with a message of `size` bytes."""
        now = monotonic()
        self._waits[context] = _Wait(now, now + self._seconds + size / BYTES_PER_SECOND, size)
        if len(self._waits) + self._backlog() > self._capacity or size > LARGE_BYTES:
            self.on_crowd()

    def end(self, context: grpc.ServicerContext) -> bool:
        """Ends a call's wait; False if it does not wait, for example because it was cancelled."""
        return self._waits.pop(context, None) is not None

    def begin_drain(self, seconds: float) -> None:
        """Cuts every wait to `seconds` from now on, because the server is stopping."""
        self._drain = monotonic(), seconds

    def cancel_late(self, now: float) -> None:
        """Cancels the calls that have waited too long, and the excess of calls and of bytes."""
        if not self._waits:
            return
        waits = self._waits.copy()
        drained, seconds = self._drain
        late = [
            context
            for context, wait in waits.items()
            if now >= wait.until or now >= max(wait.since, drained) + seconds
        ]
        cancelled = 0
        for context in [*late, *self._excess(waits, now)]:
            # A stream may have ended that wait meanwhile, and begun the next.
            if self._waits.get(context) is waits[context] and self.end(context):
                context.cancel()
                cancelled += 1
        if cancelled:
            kind = {"kind": f"cancelled: {self.noun}"}
            log.info("cancelled calls that waited for %s: %d", self.noun, cancelled, extra=kind)

    def _excess(self, waits: dict[grpc.ServicerContext, _Wait], now: float) -> Iterator[grpc.ServicerContext]:
        """Yields the calls beyond the capacity, always the oldest of the connection that has most.

        The backlog counts as well. Among equals, the connection with the oldest call loses.
        """
        backlog = self._backlog()
        calls, size = len(waits) + backlog, sum([wait.size for wait in waits.values()])
        if calls <= self._capacity and size <= self._capacity_bytes:
            return
        connections: dict[str, deque[grpc.ServicerContext]] = {}
        for context in waits:  # the oldest first, in both
            connections.setdefault(context.peer(), deque()).append(context)
        kept = {peer: sum(waits[each].size for each in own) for peer, own in connections.items()}
        haste = 1 + backlog / len(waits)  # the longer the queue, the less time for each
        while connections and (calls > self._capacity or size > self._capacity_bytes):
            by_calls = calls > self._capacity
            peer = max(connections, key=lambda each: len(connections[each]) if by_calls else kept[each])
            own = connections[peer]
            spared = HOG_SPARED_SECONDS if len(own) > HOG_CALLS else SPARED_SECONDS
            wait = waits[own[0]]
            if now - wait.since < spared / haste:
                del connections[peer]  # its calls are all spared; those of others are not
                continue
            calls, size = calls - 1, size - wait.size
            kept[peer] -= wait.size
            yield own.popleft()
            if not own:
                del connections[peer]

    def receive(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes | None:
        """Takes the next message of a call; None after the last.

        Raises Cancelled if the call was cancelled here meanwhile, grpc.RpcError if its caller has left.
        """
        self.begin(context)
        message, waited = None, False
        try:
            message = next(requests, None)
        except BaseException as error:  # grpc.RpcError is of a cancelled call, whoever cancelled it
            if self.end(context) or not isinstance(error, grpc.RpcError):
                raise
        else:
            waited = self.end(context)
        if message is None and not waited:
            raise Cancelled(f"waited too long for {self.noun}")
        return message

    def receive_all(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Yields all messages of a call, whose wait is one; raises like `receive`."""
        self.begin(context)
        try:
            yield from requests
            waited = self.end(context)
        except grpc.RpcError:
            if waited := self.end(context):
                raise
        finally:
            self.end(context)
        if not waited:
            raise Cancelled(f"waited too long for {self.noun}")

    def send(self, messages: Iterable[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Passes messages on; after each, the call waits until its reader asks for the next."""
        try:
            for message in messages:
                self.begin(context, len(message))
                yield message
                self.end(context)
        finally:
            self.end(context)

    def send_last(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        """Returns a call's only message; the call waits for its reader until it ends."""
        self.begin(context, len(message))
        forget: Callable[[], Any] = partial(self._waits.pop, context, None)
        if not context.add_callback(forget):
            forget()
        return message


class Patience:
    """Bounds several kinds of waiting, on a thread of its own."""

    def __init__(self) -> None:
        self.waitings: list[Waiting] = []
        self._ended = threading.Event()
        self._crowd = threading.Event()
        self._thread = threading.Thread(target=self._run, name="patience", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._crowd.set()

    def look_after(self, waiting: Waiting) -> Waiting:
        """Bounds a kind of waiting, and returns it."""
        waiting.on_crowd = self._crowd.set
        self.waitings.append(waiting)
        return waiting

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._crowd.wait(LOOK_SECONDS):
                self._crowd.clear()
                self._ended.wait(CROWD_SECONDS)
            now = monotonic()
            for waiting in self.waitings:
                try:
                    waiting.cancel_late(now)
                except Exception as error:  # the end of this thread would end every bound
                    kind = {"kind": "patience failed"}
                    log.error("waits for %s are not bounded: %s", waiting.noun, describe(error), extra=kind)
